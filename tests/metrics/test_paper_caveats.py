"""What is said to differ from the paper: each thing if it is known, and only then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from xvlm_core.metrics.paper import figures
from xvlm_core.metrics.paper_caveats import Answers, Model, caveats
from xvlm_core.weights.background import Background

FOUR_M = ("coco", "vg", "sbu", "cc3m")
RECORDED = Background(
    "grounding",
    FOUR_M,
    on_pairs=True,
    on_boxes=True,
    on_captions=True,
    chosen_on="val",
    trained_split="train",
)
BASE = Model("base", 384, "X-VLM base", RECORDED)
PLACES = {
    "grounding": ("refcoco+", "testA", 5726),
    "weak_grounding": ("refcoco+", "testA", 5726),
    "nlvr2": ("nlvr2", "test", 6967),
    "captioning": ("coco-karpathy", "test", 5000),
    "retrieval": ("flickr30k", "test", 1000),
    "retrieval, zero-shot": ("flickr30k", "test", 1000),
}


def said(task: str, model: Model | None = BASE, split: str | None = None, **more: Any) -> str:
    """All that is said of a task's first figure, with the official number of items."""
    dataset, usual, n = PLACES[task]
    (figure, *_) = figures(task, dataset, split or usual)
    answers = Answers(more.pop("n", n), split or usual, **more)
    return "\n".join(caveats(figure, answers, model))


def of(**changes: Any) -> Model:
    return replace(BASE, background=replace(RECORDED, **changes))


UNKNOWN = replace(BASE, background=Background(), about="X-VLM base: an official one (a.th)")


@pytest.mark.parametrize("task", PLACES)
def test_the_number_of_items_the_size_and_the_pictures(task: str) -> None:
    assert "items here" not in said(task)
    assert "700 items here" in said(task, n=700)
    assert "216 M" not in said(task)
    assert "of size tiny" in said(task, replace(BASE, size="tiny"))
    if task == "retrieval, zero-shot":
        assert "the paper does not say" in said(task)
    else:
        assert " px" not in said(task)
        assert "of 224 px here, of 384 px" in said(task, replace(BASE, image_size=224))


@pytest.mark.parametrize("task", PLACES)
def test_nothing_is_claimed_of_a_model_that_is_not_known(task: str) -> None:
    told = said(task, None)
    assert "which model answered is not known" in told
    for claim in ("pre-train", "chosen on", "recorded (it", "RefCOCO", "extra"):
        assert claim not in told, claim


@pytest.mark.parametrize("task", PLACES)
def test_nothing_is_claimed_of_a_training_that_is_not_recorded(task: str) -> None:
    """Converted from a released file, say: it may be the very model of the paper."""
    told = said(task, UNKNOWN)
    assert "not recorded (it says of itself: X-VLM base: an official one (a.th))" in told
    for claim in ("pre-train", "chosen on", "RefCOCO", "extra", "without"):
        assert claim not in told.replace("out of what", ""), claim


@pytest.mark.parametrize("task", PLACES)
def test_what_was_pre_trained_on(task: str) -> None:
    assert "pre-trained on the stores coco, vg, sbu, cc3m here; the paper's 4M" in said(task)
    whole = said(task, of(pretrained_on=()))
    assert "not pre-trained here" in whole
    more = said(task, of(start="/x/4m.th"))
    assert "coco, vg, sbu, cc3m here (before that, as /x/4m.th was)" in more
    ended = said(task, of(pretrained_on=(), start="/x/4m.th"))
    assert "was pre-trained on is not recorded (it starts from /x/4m.th)" in ended
    assert "not pre-trained" not in ended


@pytest.mark.parametrize(
    ("task", "what", "name"),
    [
        ("nlvr2", "on_pairs", "two pictures"),
        ("grounding", "on_boxes", "boxes alone"),
        ("captioning", "on_captions", "to write captions"),
    ],
)
def test_the_extra_step_before_fine_tuning(task: str, what: str, name: str) -> None:
    assert name not in said(task), "it was done"
    without = said(task, of(**{what: False}))
    assert "without the extra" in without
    assert name in without
    perhaps = said(task, of(**{what: False, "start": "hub:a/b@c"}))
    assert "without the extra" not in perhaps
    assert f"{name} is not recorded" in perhaps
    for other in set(PLACES) - {task}:
        assert name not in said(other, of(**{what: False}))


def test_what_the_checkpoint_was_chosen_on() -> None:
    assert "chosen on val here, on test in the released code" in said("retrieval")
    assert "chosen" not in said("retrieval", of(chosen_on=None))
    assert "chosen on this very split (test)" in said("retrieval", of(chosen_on="test"))
    assert "on test in the released code" not in said("retrieval", of(chosen_on="test"))
    assert "chosen on this very split (val)" in said("grounding", split="val", n=1)
    assert "chosen" not in said("grounding")
    assert "chosen" not in said("retrieval, zero-shot")


@pytest.mark.parametrize("task", ["grounding", "weak_grounding"])
def test_expressions_of_the_data_set_in_pre_training(task: str) -> None:
    name = "16M configuration also names RefCOCO"
    assert name in said(task)
    assert name not in said(task, of(pretrained_on=(*FOUR_M, "refcoco+")))
    assert name not in said(task, of(start="a.th")), "what was before is not known"
    assert name not in said("retrieval")


def test_what_boxes_were_chosen_from() -> None:
    def told(**more: Any) -> str:
        (line,) = [
            line for line in said("weak_grounding", **more).splitlines() if "MAttNet" in line
        ]
        return line

    assert "not recorded" in told()
    assert "without proposals here" in told(found_by={"heat map": 9})
    assert "proposals of" not in told(found_by={"heat map": 9}, proposals=("dets",))
    assert "one of the proposals of dets here;" in told(
        found_by={"proposal": 9}, proposals=["dets"]
    )
    assert "proposals of the records themselves here;" in told(found_by={"proposal": 9})
    cold = {"proposal": 9, "no heat": 2}
    assert "proposals of the records themselves here;" in told(found_by=cold)
    assert "without proposals here" in told(found_by={"heat map": 9, "no heat": 2})
    assert "not recorded" in told(found_by={"no heat": 2})
    assert "here for 4 of 9 expressions;" in told(found_by={"proposal": 4, "heat map": 5})
    for other in set(PLACES) - {"weak_grounding"}:
        assert "MAttNet" not in said(other)


def test_how_many_candidates_are_ranked() -> None:
    assert "ranked by matching" not in said("retrieval", candidates=128)
    assert "the 64 nearest" in said("retrieval", candidates=64)
    assert "released configuration" not in said("retrieval")
    assert "64 nearest" not in said("grounding", candidates=64)


def test_how_items_are_counted_is_our_own_doing_whatever_the_model_is() -> None:
    for task in PLACES:
        for model in (BASE, UNKNOWN, None):
            once = not task.startswith(("retrieval", "captioning"))  # it removes what comes twice
            assert ("counts once" in said(task, model)) == once


def test_answers_tell_how_they_were_found() -> None:
    some = [
        {"present": True, "found_by": "proposal"},
        {"present": True, "found_by": "heat map"},
        {"present": False, "found_by": "heat map"},
    ]
    found = Answers.of(some, n=2, split="val", proposals=("dets",))
    assert dict(found.found_by) == {"proposal": 1, "heat map": 1}
    assert found.candidates is None
    others = [*some, {"present": True}]
    assert not Answers.of(others, n=3, split="val", proposals=()).found_by, "of one it is not known"
    ranked = [{"candidates": 4}, {"candidates": 9}]
    assert Answers.of(ranked, n=2, split="val", proposals=()).candidates == 9
