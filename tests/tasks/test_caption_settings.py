"""What a recipe of captions says reaches the crops, the draws, the reward and the search."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.painted import painted_record
from tests.tasks.captions import LENGTH, captions_recipe, lm_recipe, second_stage, talkative
from tests.tasks.recipes import store, write_stores
from xvlm_core.data.caption_samples import CaptionSampleMaker, caption_batch
from xvlm_core.data.records import Record
from xvlm_core.data.samples import SampleProblem
from xvlm_core.inference.generate import Lengths, Written
from xvlm_core.models.captioner import Captioner
from xvlm_core.tasks.base import Moment
from xvlm_core.tasks.captioning import CaptioningTask
from xvlm_core.tasks.captioning_eval import CaptioningEvaluation, score
from xvlm_core.tasks.registry import build_task


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_stores(folder)
    return folder


def second(root: Path, **changes: Any) -> CaptioningTask:
    task = build_task(second_stage(root, **changes))
    assert isinstance(task, CaptioningTask)
    return task


def moment() -> Moment:
    return Moment(1, 0.0, torch.Generator().manual_seed(0))


def ending(model: Captioner, end_id: int, by: float = 1e4) -> Captioner:
    """The model, whose texts end as soon as they may; or never."""
    assert model.text.lm_head is not None
    with torch.no_grad():
        model.text.lm_head.bias[end_id] += by
    return model


@pytest.mark.parametrize(
    ("make", "scale"),
    [(captions_recipe, (0.5, 1.0)), (second_stage, (0.5, 1.0)), (lm_recipe, (0.2, 1.0))],
)
def test_a_crop_keeps_what_the_released_code_keeps(
    make: Any, scale: tuple[float, float], root: Path
) -> None:
    maker = build_task(make(root)).sample_maker()  # type: ignore[attr-defined]
    assert maker.settings.crop_scale == scale


def test_only_what_always_comes_is_in_every_part(root: Path) -> None:
    """Draws have another length on each rank, and a loss may start later."""
    late = {"losses": {"language_modeling": {"start": 0.5}}}
    assert build_task(captions_recipe(root)).build_model().runs_in_every_part
    for settings in (second_stage(root), captions_recipe(root, **late), lm_recipe(root, **late)):
        assert build_task(settings).build_model().runs_in_every_part == ()


def test_a_caption_of_a_batch_is_about_its_own_picture(root: Path) -> None:
    """Pictures that differ, where the loss of one is that of it alone."""
    task = build_task(captions_recipe(root))
    assert isinstance(task, CaptioningTask)
    model = talkative(task).eval()
    samples = []
    for n, box in enumerate([(0.0, 0.0, 40.0, 90.0), (50.0, 10.0, 120.0, 60.0)]):
        record = painted_record(root, f"own{n}", [("it", box)], captions=("a red star",))
        samples.append(task.sample_maker().of_writing(record, root / record.image, 0))
    with torch.no_grad():
        each, both = (
            [
                task.losses(model, caption_batch(some, given=4), moment()).parts[
                    "language_modeling"
                ]
                for some in rows
            ]
            for rows in ([samples[:1], samples[1:]], [samples])
        )
    assert abs(each[0] - each[1]) > 1e-3
    assert both[0].item() == pytest.approx((each[0] + each[1]).item() / 2, rel=1e-5)


def test_a_picture_that_cannot_be_read_is_left_out_counted_and_named(tmp_path: Path) -> None:
    made = [
        painted_record(tmp_path / "pictures", name, [], captions=(caption,))
        for name, caption in (("good", "a star"), ("torn", "a circle"), ("mute", "?!"))
    ]
    store(tmp_path, "captions", made)
    (tmp_path / "pictures" / "torn.png").write_bytes(b"no picture")
    data = {"images": {"batch_size": 3}, "validation": []}
    task = build_task(captions_recipe(tmp_path, data=data))
    (batch,) = task.feed().batches(1)
    assert batch.record_ids == ("good",)
    assert dict(batch.dropped) == {"not an image": 1, "empty text": 1}
    assert [bad.record_id for bad in batch.bad.examples] == ["torn"]


# ---------------------------------------------------------------- the second stage


def test_captions_are_drawn_as_the_recipe_says(root: Path) -> None:
    changes: dict[str, Any] = {
        "scoring": {"max_length": 9, "min_length": 7},
        "text": {"max_words": 6},
        "captioning": {"prompt": "there is a "},
    }
    task = second(root, **changes)
    made = task.self_critical
    assert made.lengths == Lengths(task.tokenizer.sep_id, 9, 7)
    assert made.prompt == task.tokenizer.encode("there is a ", 20).ids
    assert made.max_words == 6


def test_the_reward_is_weighed_as_the_recipe_says_and_counts_what_is_learnt_from(
    root: Path,
) -> None:
    reward = second(root, captioning={"self_critical": {"cider": 0.5, "bleu": 2.0}}).reward
    parts = [
        second(root, captioning={"self_critical": weights}).reward
        for weights in ({"cider": 1.0, "bleu": 0.0}, {"cider": 0.0, "bleu": 1.0})
    ]
    asked = (["a red circle and a star"], [["a red circle and a green square", "a circle"]])
    cider, bleu = (part(*asked)[0] for part in parts)
    assert reward(*asked) == pytest.approx([0.5 * cider + 2 * bleu])
    assert 0 < bleu < cider
    assert reward.frequencies.documents == 7, "the pictures of train, not the three of val"  # type: ignore[attr-defined]


def test_a_caption_that_was_cut_off_is_counted_and_its_last_word_is_learnt(root: Path) -> None:
    task = second(root)
    batch = task.feed().batches(1)[0]
    end = task.tokenizer.sep_id
    for by, without in ((-1e4, 12), (1e4, 0)):
        model = ending(talkative(task), end, by)
        counts = task.losses(model, batch, moment()).counts
        assert counts.get("captions_without_end", 0) == without
        with torch.no_grad():
            patches = model.encode_pictures(batch.pictures_ICHW)
            drawn = task.self_critical._draw(model, patches, batch, moment().generator).texts
        if without:
            assert set(drawn.packing.lengths) == {LENGTH}
            assert end not in drawn.ids_N.tolist(), "no end was drawn: none is rewarded"
        else:
            assert set(drawn.packing.lengths) == {5}, "the prompt and the end"


def test_draws_are_those_of_the_generator_of_the_step(root: Path) -> None:
    task = second(root)
    batch, model = task.feed().batches(1)[0], talkative(task).eval()
    with torch.no_grad():
        patches = model.encode_pictures(batch.pictures_ICHW)
        one, again, other = (
            task.self_critical._draw(model, patches, batch, torch.Generator().manual_seed(seed))
            for seed in (1, 1, 2)
        )
    assert one.texts.ids_N.tolist() == again.texts.ids_N.tolist() != other.texts.ids_N.tolist()


def test_what_was_drawn_is_compared_as_references_are_cleaned(root: Path) -> None:
    made = second(root, text={"max_words": 2}).self_critical

    def words(text: str) -> str:
        ids = made.tokenizer.encode(text, 20).ids[1:]
        return made.words_of(Written((*made.prompt, *ids, made.lengths.end_id), 0.0))

    assert words("red circle") == "red circle"
    assert words("red circle above a star") == "red circle", "so many words as are kept"
    assert words("") == ""


# ---------------------------------------------------------------- references


def maker(root: Path, **changes: Any) -> CaptionSampleMaker:
    made = second(root, captioning={"self_critical": changes}).sample_maker()
    assert isinstance(made, CaptionSampleMaker)
    return made


def test_other_references_are_drawn_in_another_pass(root: Path) -> None:
    record = painted_record(root, "r", [], captions=("a star", "a circle", "a square"))
    made = maker(root, references=2)

    def drawn(epoch: int) -> tuple[str, ...]:
        return made.of_writing(record, root / record.image, epoch).references

    passes = [drawn(epoch) for epoch in range(12)]
    assert all(len(set(own)) == 2 for own in passes)
    assert {frozenset(own) for own in passes} == {
        frozenset(record.captions) - {one} for one in record.captions
    }
    assert [drawn(epoch) for epoch in range(12)] == passes


def test_references_are_cleaned_and_what_has_no_word_is_none(root: Path) -> None:
    record = painted_record(root, "c", [], captions=("A Red circle!", "?!", "a - star"))
    made = maker(root, references=None)
    found = []
    for epoch in range(3):
        with contextlib.suppress(SampleProblem):  # the turn of the caption without a word
            found.append(made.of_writing(record, root / record.image, epoch).references)
    assert [set(own) for own in found] == [{"a red circle", "a star"}] * 2


def test_a_caption_without_a_token_is_not_the_prompt_alone(root: Path) -> None:
    record = painted_record(root, "n", [], captions=("\u0301",))  # an accent on nothing
    with pytest.raises(SampleProblem, match="empty text"):
        maker(root).of_writing(record, root / record.image, 0)


# ---------------------------------------------------------------- evaluation


def evaluated(root: Path, **changes: Any) -> tuple[CaptioningTask, CaptioningEvaluation]:
    task = build_task(captions_recipe(root, **changes))
    assert isinstance(task, CaptioningTask)
    assert isinstance(task.evaluation, CaptioningEvaluation)
    return task, task.evaluation


@pytest.mark.parametrize("least", [6, 9])
def test_a_caption_of_beams_has_the_least_length_of_the_recipe(
    least: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, evaluation = evaluated(root, scoring={"min_length": least})
    model = ending(talkative(task).eval(), task.tokenizer.sep_id)
    monkeypatch.setattr(evaluation.tokenizer, "decode", lambda ids: " ".join(map(str, ids)))
    with torch.no_grad():
        rows = evaluation.predict(model, next(iter(evaluation.validation())))
    for row in rows:
        assert len(row["caption"].split()) == least - 4 + 1, "without the prompt, with the end"


def test_a_reference_without_a_word_is_none(root: Path, tmp_path: Path) -> None:
    record: Record = painted_record(tmp_path / "pictures", "v", [], split="val")
    made = [dataclasses.replace(record, captions=("", "a star", " "))]
    store(tmp_path, "captions", made)
    _, evaluation = evaluated(tmp_path, data={"images": {"stores": [str(root / "captions")]}})
    assert [row["references"] for row in evaluation.references()] == [["a star"]]


def test_figures_that_are_means_over_pictures_have_an_interval() -> None:
    rows = [
        {
            "id": str(n),
            "record": str(n),
            "caption": "a red star" if n % 2 else "two blue circles",
            "references": ["a red star near a box"],
        }
        for n in range(40)
    ]
    found = score(rows, "val")
    half = 1.96 * (0.25 / 40) ** 0.5 * 2 * found["ROUGE-L"].value
    low, high = found["ROUGE-L"].interval or (0.0, 0.0)
    assert high - low == pytest.approx(2 * half, rel=0.2)
    assert found["CIDEr"].interval is not None
    assert [found[f"BLEU-{n}"].interval for n in range(1, 5)] == [None] * 4
