"""How a model came about, out of the records of all the trainings before."""

from __future__ import annotations

from typing import Any

from xvlm_core.config.resolve import resolve
from xvlm_core.weights.background import Background, background
from xvlm_core.weights.provenance import Provenance, ScoreRecord, Start


def step(name: str, kind: str, before: Provenance | Start | None = None, **more: Any) -> Provenance:
    """A training by a packaged recipe, after another one or from a place."""
    recipe = resolve(name, (), environ={}, kind=kind).recipe
    start = (
        Start(place=f"runs/{before.run}", provenance=before)
        if isinstance(before, Provenance)
        else before
    )
    given = {"recipe": recipe.model_dump(mode="json"), "scores": {"s": ScoreRecord(value=0.5)}}
    fields: dict[str, Any] = {**given, "run": name, "stores": {"read": "f"}, **more}
    return Provenance(
        task=recipe.task, recipe_name=f"{kind}/{name}", step=3, started_from=start, **fields
    )


def test_the_whole_way_of_a_grounding_model() -> None:
    first = step("4m", "pretrain")
    found = background(step("refcoco+", "finetune", step("box", "pretrain", first)))
    assert (found.task, found.start) == ("grounding", None)
    assert found.is_recorded
    assert found.is_whole
    recipe = resolve("4m", (), environ={}, kind="pretrain").recipe
    assert recipe.data.images is not None
    assert set(recipe.data.images.stores) <= set(found.pretrained_on)
    assert "refcoco+" not in found.pretrained_on, "that is fine-tuning"
    assert found.on_boxes
    assert not found.on_pairs
    assert (found.chosen_on, found.trained_split) == ("val", "train")
    assert not background(step("refcoco+", "finetune", first)).on_boxes
    assert not background(first).on_boxes, "boxes among other losses"


def test_boxes_alone_may_be_pre_training_by_their_losses() -> None:
    words = [f"losses.{name}.weight=0" for name in ("contrastive", "matching", "masked_lm")]
    recipe = resolve("4m", words, environ={}, kind="pretrain").recipe
    assert background(step("4m", "pretrain", recipe=recipe.model_dump(mode="json"))).on_boxes


def test_the_extra_step_for_pairs() -> None:
    first = step("4m", "pretrain")
    found = background(step("nlvr2", "finetune", step("nlvr2", "pretrain", first)))
    assert found.on_pairs
    assert not background(step("nlvr2", "finetune", first)).on_pairs


def test_the_extra_step_for_captions() -> None:
    first = step("4m", "pretrain")
    assert background(
        step("caption", "finetune", step("caption-lm", "pretrain", first))
    ).on_captions
    assert not background(step("caption", "finetune", first)).on_captions


def test_a_record_that_ends_says_where() -> None:
    released = Start(place="weights/4m_base.th")
    found = background(step("flickr30k", "finetune", released))
    assert (found.start, found.pretrained_on) == ("weights/4m_base.th", ())
    assert found.is_recorded
    assert not found.is_whole
    further = background(step("refcoco+", "finetune", step("box", "pretrain", released)))
    assert further.on_boxes
    assert further.pretrained_on == ("coco", "vg")
    assert further.start == "weights/4m_base.th"


def test_what_is_not_recorded_is_not_known() -> None:
    assert not Background().is_recorded
    assert not Background().is_whole
    bare = background(step("refcoco+", "finetune", recipe=None))
    assert (bare.chosen_on, bare.trained_split) == (None, None)
    unread = background(step("4m", "pretrain", recipe={"of": "another version"}))
    assert unread.pretrained_on == ("read",), "the stores that were read"
    unscored = background(step("refcoco+", "finetune", scores={}))
    assert unscored.chosen_on is None, "never validated"
