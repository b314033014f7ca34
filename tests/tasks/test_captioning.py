from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.tasks.captions import LENGTH, captions_recipe, lm_recipe, second_stage, talkative
from tests.tasks.recipes import recipe, records, store, write_stores
from xvlm_core.data.batches import CaptionBatch
from xvlm_core.errors import ConfigError
from xvlm_core.inference.generate import Lengths
from xvlm_core.models.captioner import Captioner
from xvlm_core.tasks.base import Moment
from xvlm_core.tasks.caption_pretrain import CaptionPretrainTask
from xvlm_core.tasks.captioning import CaptioningTask
from xvlm_core.tasks.captioning_eval import NO_REFERENCE, CaptioningEvaluation, score
from xvlm_core.tasks.registry import build_task
from xvlm_core.tasks.self_critical import SelfCritical
from xvlm_core.train.synthetic import synthetic_part, task_without_data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_stores(folder)
    return folder


def moment(seed: int = 0) -> Moment:
    return Moment(1, 0.0, torch.Generator().manual_seed(seed))


def built(settings: Any) -> tuple[CaptionPretrainTask, Captioner, CaptionBatch]:
    task = build_task(settings)
    assert isinstance(task, CaptionPretrainTask)
    return task, talkative(task), task.feed().batches(1)[0]


def texts_of(batch: CaptionBatch) -> list[list[int]]:
    packing = batch.texts.packing
    return [
        batch.texts.ids_N[start : start + length].tolist()
        for start, length in zip(packing.starts, packing.lengths, strict=True)
    ]


# ---------------------------------------------------------------- cross-entropy


@pytest.mark.parametrize(("make", "prompt"), [(captions_recipe, "a picture of "), (lm_recipe, "")])
def test_a_text_is_cls_the_prompt_a_caption_and_the_end(root: Path, make: Any, prompt: str) -> None:
    task, _, batch = built(make(root))
    captions = {caption for record in records(root / "pictures", 7) for caption in record.captions}
    for text in texts_of(batch):
        said = task.tokenizer.decode(text)
        assert said.startswith(prompt)
        assert said.removeprefix(prompt) in captions
        assert (text[0], text[-1]) == (task.tokenizer.cls_id, task.tokenizer.sep_id)
        assert task.tokenizer.sep_id not in text[:-1]
    assert batch.given == (4 if prompt else 1)


def test_a_caption_that_is_cut_keeps_its_end(root: Path) -> None:
    task, _, batch = built(captions_recipe(root, text={"max_tokens": 8}))
    cut = [text for text in texts_of(batch) if len(text) == 8]
    assert cut
    assert all(text[-1] == task.tokenizer.sep_id for text in cut)
    assert batch.counts["cut_tokens"] > 0


@pytest.mark.parametrize(
    ("make", "given", "smoothing"), [(captions_recipe, 4, 0.1), (lm_recipe, 1, 0.0)]
)
def test_the_loss_is_of_the_tokens_after_the_prompt(
    root: Path, make: Any, given: int, smoothing: float
) -> None:
    task, model, batch = built(make(root))
    losses = task.losses(model, batch, moment())
    patches = model.encode_pictures(batch.pictures_ICHW)
    logits = model.caption_logits(patches, batch.texts, batch.picture_of_text_B)
    rows, labels = [], []
    for b, text in enumerate(texts_of(batch)):
        start = batch.texts.packing.starts[b]
        for at in range(given, len(text)):
            rows.append(start + at - 1)
            labels.append(text[at])
    plain = F.cross_entropy(logits[rows], torch.tensor(labels), reduction="none")
    every = -logits[rows].log_softmax(-1).sum(-1)
    share = smoothing / logits.shape[1]
    expected = ((1 - smoothing) * plain + share * (every - plain)).mean()
    assert torch.allclose(losses.parts["language_modeling"], expected, rtol=1e-5)
    assert task.sizes(batch, moment()) == {"language_modeling": float(len(labels))}
    official = make(root, compat="official")
    assert build_task(official).sizes(batch, moment()) == {"language_modeling": 1.0}


def test_every_weight_learns(root: Path) -> None:
    task, model, batch = built(captions_recipe(root))
    total = task.losses(model, batch, moment()).total()
    assert total is not None
    total.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # rows of words that are not in the batch learn nothing, keys of a softmax have no bias
    assert all(name.endswith("key.bias") for name in without), without
    assert model.larger_lr_names == frozenset()


def test_in_each_pass_a_picture_comes_with_the_next_of_its_captions(root: Path) -> None:
    task, _, _ = built(captions_recipe(root))
    maker = task.sample_maker()
    store_of = task.streams["images"][0]
    record = store_of[0]
    picture = store_of.picture(record)
    said = [maker.of_writing(record, picture, epoch).texts[0].words for epoch in range(4)]
    assert set(said[:2]) == set(said[2:]) == set(record.captions)


@pytest.mark.parametrize(
    ("make", "data", "where"),
    [
        (lm_recipe, {"regions": {"stores": ["regions"]}}, "data.regions"),
        (lm_recipe, {"validation": ["regions"]}, "data.validation"),
        (captions_recipe, {"regions": {"stores": ["regions"]}}, "data.regions"),
        (captions_recipe, {"images": None, "regions": {"stores": ["regions"]}}, "data.images"),
    ],
)
def test_a_recipe_with_other_data_is_refused(
    root: Path, make: Any, data: dict[str, Any], where: str
) -> None:
    with pytest.raises(ConfigError, match="pictures with captions") as caught:
        build_task(make(root, data=data))
    assert caught.value.where == where
    assert caught.value.try_


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"scoring": {"max_length": 65}}, "scoring.max_length"),
        ({"scoring": {"max_length": 4}}, "scoring.max_length"),
        ({"text": {"max_tokens": 5}}, "text.max_tokens"),
        ({"captioning": {"stage": "self_critical"}}, "init.checkpoint"),
    ],
)
def test_what_does_not_fit_is_refused(root: Path, changes: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_task(captions_recipe(root, **changes))
    assert caught.value.where == where
    assert caught.value.try_


def test_pretraining_then_language_modelling_then_captions_and_nothing_is_random(
    root: Path, tmp_path: Path
) -> None:
    plain = build_task(recipe(root))
    plain.save_model(plain.build_model(), tmp_path / "plain")
    lm = build_task(lm_recipe(root), start_from=tmp_path / "plain")
    model = lm.build_model()
    lm.save_model(model, tmp_path / "lm")
    for start in ("plain", "lm"):
        tuned = build_task(captions_recipe(root), start_from=tmp_path / start)
        own = tuned.build_model().state_dict()
        assert any("0 are random" in note for note in tuned.notes)
        assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    assert tuned.info().prompt == "a picture of "
    assert lm.info().prompt == ""


# ---------------------------------------------------------------- reward


def longest_wins(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """A toy: the share of words that are in a reference."""
    return [
        float(len(set(caption.split()) & set(" ".join(own).split())))
        for caption, own in zip(captions, references, strict=True)
    ]


def rewarded(task: CaptionPretrainTask, reward: Any = longest_wins) -> SelfCritical:
    assert isinstance(task, CaptioningTask)
    made = SelfCritical(
        task.recipe.captioning.self_critical,
        reward,
        task.tokenizer,
        task.tokenizer.encode(task.prompt, 20).ids,
        Lengths(task.tokenizer.sep_id, LENGTH, 5),
        12,
    )
    task.__dict__["self_critical"] = made
    return made


def test_captions_are_compared_with_all_references_of_their_own_picture(root: Path) -> None:
    seen: list[tuple[Sequence[str], Sequence[Sequence[str]]]] = []

    def remember(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        seen.append((captions, references))
        return longest_wins(captions, references)

    task, model, batch = built(second_stage(root))
    rewarded(task, remember)
    losses = task.losses(model, batch, moment())
    (drawn, compared), (best, alone) = seen
    assert (len(drawn), len(best)) == (12, 4)
    assert list(compared) == [own for own in batch.references for _ in range(3)]
    assert list(alone) == list(batch.references)
    known = {r.id: set(r.captions) for r in records(root / "pictures", 7)}
    assert [set(own) for own in batch.references] == [known[name] for name in batch.record_ids]
    assert not any("a picture of" in caption for caption in [*drawn, *best])
    assert losses.gauges["reward"].item() == pytest.approx(sum(longest_wins(drawn, compared)) / 12)
    assert losses.gauges["baseline"].item() == pytest.approx(sum(longest_wins(best, alone)) / 4)
    assert task.sizes(batch, moment()) == {"self_critical": 4.0}


def test_the_greedy_baseline_is_without_drop_out_and_the_mode_is_restored(root: Path) -> None:
    model_of = {"overrides": {"text": {"dropout": 0.5}}}
    task, model, batch = built(second_stage(root, model=model_of))
    made = rewarded(task)
    model.train()
    with torch.no_grad():
        one, again = (made._greedy(model, batch.pictures_ICHW) for _ in range(2))
        assert model.training
        assert one == again
        patches = model.encode_pictures(batch.pictures_ICHW)
        draws = [made._draw(model, patches, batch, torch.Generator().manual_seed(1)) for _ in "ab"]
    assert draws[0].texts.ids_N.tolist() != draws[1].texts.ids_N.tolist(), "drop-out is on"


@pytest.mark.parametrize("baseline", ["greedy", "others"])
def test_what_is_rewarded_becomes_likelier(root: Path, baseline: str) -> None:
    changes = {"self_critical": {"samples": 8, "baseline": baseline}}
    task, model, batch = built(second_stage(root, captioning=changes))
    rewarded(task)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    rewards = []
    for step in range(30):
        losses = task.losses(model, batch, moment(step))
        total = losses.total()
        assert total is not None
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        rewards.append(losses.gauges["reward"].item())
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 2.5, rewards


def test_the_gradient_is_that_of_the_written_down_loss(root: Path) -> None:
    """The words that were drawn, one picture at a time, by plain PyTorch."""
    task, model, batch = built(second_stage(root))
    made = rewarded(task, lambda captions, _: [len(caption) % 7 for caption in captions])
    draw = torch.Generator().manual_seed(2)  # no flat areas: there a ReLU stands at its kink
    noise = torch.randn(batch.pictures_ICHW.shape, generator=draw)
    batch = dataclasses.replace(batch, pictures_ICHW=noise)
    model.eval()
    with torch.no_grad():
        patches = model.encode_pictures(batch.pictures_ICHW)
        judged = made._draw(model, patches, batch, torch.Generator().manual_seed(0))
    loss = task.losses(model, batch, moment()).total()
    assert loss is not None
    loss.backward()
    got = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected = torch.zeros(())
    packing = judged.texts.packing
    for b in range(packing.n_texts):
        ids = judged.texts.ids_N[packing.starts[b] :][: packing.lengths[b]]
        patches = model.encode_pictures(batch.pictures_ICHW[b // 3 : b // 3 + 1])
        one = dataclasses.replace(judged.texts, ids_N=ids, packing=type(packing)((len(ids),)))
        logp = model.caption_logits(patches, one, torch.tensor([0])).log_softmax(-1)
        words = [logp[at - 1, ids[at]] for at in range(4, len(ids))]
        advantage = judged.reward_B[b] - judged.baseline_B[b]
        expected = expected - advantage * torch.stack(words).mean() / packing.n_texts
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    expected.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        if name.endswith("key.bias"):  # a softmax is blind to it: what is there is rounding
            continue
        gap = (got[name] - parameter.grad).abs().max()
        assert gap <= 1e-4 * max(1e-3, parameter.grad.abs().max()), name


def test_an_update_is_foretold_without_a_reward(root: Path) -> None:
    for settings, tokens in ((captions_recipe(root), None), (second_stage(root), 12 * LENGTH)):
        task = task_without_data(settings)
        ((batch, often),) = synthetic_part(settings, task, 1).batches
        assert isinstance(batch, CaptionBatch)
        assert (batch.n_pictures, often) == (4, 1.0)
        assert (batch.drawn and batch.drawn.packing.n_tokens) == tokens
        assert task.losses(talkative(task), batch, moment()).total() is not None


# ---------------------------------------------------------------- evaluation


def evaluated(root: Path, **changes: Any) -> tuple[CaptioningTask, CaptioningEvaluation]:
    task = build_task(captions_recipe(root, **changes))
    assert isinstance(task, CaptioningTask)
    assert isinstance(task.evaluation, CaptioningEvaluation)
    return task, task.evaluation


def test_every_picture_of_the_split_has_a_caption_once_whatever_the_ranks(root: Path) -> None:
    task, evaluation = evaluated(root)
    model = talkative(task).eval()
    evaluation.batch_records = 2
    with torch.no_grad():
        found = [
            [
                row
                for batch in evaluation.validation(rank, n)
                for row in evaluation.predict(model, batch)
            ]
            for n in (1, 2)
            for rank in range(n)
        ]
    assert found[0] == [*found[1], *found[2]]
    assert [row["id"] for row in found[0]] == ["val-0", "val-1", "val-2"]
    references = list(evaluation.references())
    assert [row["references"] for row in found[0]] == [row["references"] for row in references]
    assert not any("picture of" in row["caption"] for row in found[0])


def test_beams_and_lengths_are_those_of_the_recipe(root: Path) -> None:
    scores = {}
    for beams, length in ((1, 8), (3, 8), (3, 12)):
        task, evaluation = evaluated(root, scoring={"beams": beams, "max_length": length})
        model = talkative(task).eval()
        with torch.no_grad():
            rows = evaluation.predict(model, next(iter(evaluation.validation())))
        longest = max(len(task.tokenizer.encode(row["caption"], 40).ids) for row in rows)
        assert longest <= length - 3
        scores[beams, length] = [row["log_probability"] for row in rows]
    assert scores[1, 8] != scores[3, 8] != scores[3, 12]


def test_pictures_that_cannot_be_asked_are_counted(root: Path, tmp_path: Path) -> None:
    made = records(tmp_path / "pictures", 4, "val")
    made[1] = dataclasses.replace(made[1], captions=())
    made += records(tmp_path / "pictures", 3)
    store(tmp_path, "captions", made)
    (tmp_path / "pictures" / made[2].image).write_bytes(b"no picture")
    _, evaluation = evaluated(tmp_path)
    asked = [item.id for batch in evaluation.validation() for item in batch.items]
    assert asked == ["val-0", "val-3"]
    assert evaluation.dropped[NO_REFERENCE] == 1
    assert sum(evaluation.dropped.values()) == 2
    assert len(evaluation.examples) == 2


def said(*captions: str) -> list[dict[str, Any]]:
    references = [
        ["a red circle left of a blue square", "A red circle, and a blue square."],
        ["two green stars", "a green star and another green star"],
        ["a yellow triangle above a purple cross"],
    ]
    return [
        {"id": str(i), "caption": caption, "references": own}
        for i, (caption, own) in enumerate(zip(captions, references, strict=True))
    ]


def test_figures_of_captions() -> None:
    right = said("a red circle and a blue square", "two green stars", "a yellow triangle")
    wrong = said("two green stars", "a yellow triangle", "a red circle and a blue square")
    nothing = said("", "", "")
    figures = {
        name: score(rows, "val") for name, rows in (("r", right), ("w", wrong), ("n", nothing))
    }
    for name in ("CIDEr", "BLEU-4", "ROUGE-L"):
        assert figures["r"][name].value > figures["w"][name].value >= 0
        assert figures["n"][name].value == pytest.approx(0, abs=1e-6)
        assert figures["r"][name].n == 3
    assert set(figures["r"]) == {"CIDEr", "ROUGE-L", *(f"BLEU-{n}" for n in range(1, 5))}
    shouted = said("A red circle, and a blue square!", "Two green stars.", "a yellow triangle")
    assert score(shouted, "val") == figures["r"], "tokens have no case and no punctuation"
    assert score([], "val") == {}


def test_a_run_is_selected_by_cider(root: Path) -> None:
    task, evaluation = evaluated(root)
    model = talkative(task).eval()
    with torch.no_grad():
        rows = [
            row for batch in evaluation.validation() for row in evaluation.predict(model, batch)
        ]
    assert task.selection == "CIDEr"
    assert task.selection in task.score(rows)
