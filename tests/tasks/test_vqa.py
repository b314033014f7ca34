"""VQA as a task: its model, its loss, its samples and its feed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.painted import painted_store
from tests.tasks.questions import (
    ANSWERS,
    asked,
    question,
    questions_recipe,
    write_list,
    write_questions,
)
from xvlm_core.config.resolve import resolve
from xvlm_core.data.batches import QuestionBatch
from xvlm_core.data.question_samples import QuestionSample, QuestionSampleMaker
from xvlm_core.data.records import Record
from xvlm_core.errors import ConfigError, DataError
from xvlm_core.models.vqa import VQA
from xvlm_core.tasks.base import Moment
from xvlm_core.tasks.building import sample_settings
from xvlm_core.tasks.registry import build_task
from xvlm_core.tasks.vqa import VqaTask
from xvlm_core.tasks.vqa_eval import VqaEvaluation
from xvlm_core.train.synthetic import synthetic_part, task_without_data
from xvlm_core.weights.folder import load_model_folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_questions(folder)
    return folder


def moment(progress: float = 0.0) -> Moment:
    return Moment(1, progress, torch.Generator().manual_seed(0))


def built(root: Path, **changes: Any) -> tuple[VqaTask, VQA, QuestionBatch]:
    torch.manual_seed(0)
    task = build_task(questions_recipe(root, **changes))
    assert isinstance(task, VqaTask)
    model = task.build_model()
    assert isinstance(model, VQA)
    return task, model, task.feed().batches(1)[0]


# ------------------------------------------------------------------ model and loss


def test_the_decoder_has_as_many_layers_as_the_cross_encoder(root: Path) -> None:
    _, model, _ = built(root)
    assert model.config.decoder_layers == 1
    assert model.config.heads == ()
    shape = task_without_data(resolve("finetune/vqa").recipe).config
    assert (shape.decoder_layers, shape.text.num_layers, shape.text.fusion_layer) == (6, 12, 6)


def test_the_loss_is_the_weighted_cost_of_the_answers_a_question(root: Path) -> None:
    task, model, batch = built(root)
    losses = task.losses(model, batch, moment())
    total = 0.0
    n_questions = 0
    for record in batch.record_ids:
        number = batch.record_ids.index(record)
        store_record = next(r for r in (task.streams["questions"][0][i] for i in range(5))
                            if r.id == record)  # fmt: skip
        for asked_ in store_record.questions:
            n_questions += 1
            ids = task.tokenizer.encode(asked_.question, 12).ids
            states = model.read(
                batch.pictures_ICHW[number][None], packed(ids), torch.zeros(1, dtype=torch.int64)
            )
            for answer in asked_.answers:
                tokens = task.tokenizer.encode(answer.answer, 12).ids
                logits = model.answer_logits(states, packed(tokens), torch.tensor([0]))
                following = [*tokens[1:], task.tokenizer.sep_id]
                cost = -logits.log_softmax(-1)[torch.arange(len(tokens)), following].sum()
                total = total + answer.weight * cost
    assert torch.allclose(losses.parts["answer"], total / n_questions, atol=1e-4)
    assert task.sizes(batch, moment()) == {"answer": float(n_questions)}
    assert n_questions > len(batch.record_ids) == batch.n_pictures == 4
    losses.total().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def packed(ids: tuple[int, ...]) -> Any:
    from xvlm_core.models.packing import PackedTexts

    return PackedTexts.from_lists([ids])


def test_pictures_and_questions_are_encoded_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, model, batch = built(root)
    pictures, texts = [], []
    see, read = model.encode_pictures, model.encode_texts
    monkeypatch.setattr(model, "encode_pictures", lambda x: (pictures.append(len(x)), see(x))[1])
    monkeypatch.setattr(
        model, "encode_texts", lambda x: (texts.append(x.packing.n_texts), read(x))[1]
    )
    task.losses(model, batch, moment())
    n_answers = batch.answers.packing.n_texts
    assert (pictures, texts) == ([4], [batch.texts.packing.n_texts])
    assert n_answers > batch.texts.packing.n_texts > 4


def test_a_loss_that_has_not_started_encodes_nothing(root: Path) -> None:
    task, model, batch = built(root, losses={"answer": {"start": 0.5}})
    model.encode_pictures = lambda *_: pytest.fail("pictures encoded")  # type: ignore[method-assign]
    assert not task.losses(model, batch, moment(0.4)).parts
    assert model.runs_in_every_part == (), "a part may skip the encoders"
    assert built(root)[1].runs_in_every_part


def test_a_recipe_without_questions_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.questions") as caught:
        built(root, data={"questions": None, "images": {"stores": ["captions"]}})
    assert caught.value.exit_code == 3
    assert caught.value.try_


def test_a_few_steps_learn_two_answers_of_one_picture(tmp_path: Path) -> None:
    both = [question("a", "what colour", red=1.0), question("b", "how many circles", top_left=1.0)]
    painted_store(tmp_path / "asked", tmp_path, [asked(tmp_path, "a", both)])
    task, model, batch = built(tmp_path, data={"questions": {"batch_size": 1}, "validation": []})
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        losses = task.losses(model, batch, moment())
        losses.total().backward()
        optimizer.step()
    assert losses.parts["answer"].item() < 0.1


# ------------------------------------------------------------------ the answers to choose from


def test_the_model_keeps_the_answers_that_it_chooses_from(root: Path, tmp_path: Path) -> None:
    task, model, _ = built(root)
    assert task.info().answers == ANSWERS
    task.save_model(model, tmp_path / "model")
    assert load_model_folder(tmp_path / "model").info.answers == ANSWERS
    listed = tmp_path / "mine.txt"
    listed.write_text("yes\nno\n")
    assert built(root, scoring={"answers": str(listed)})[0].info().answers == ("yes", "no")
    free = built(root, scoring={"scheme": "open"})[0]
    assert free.info().answers == ()


def test_without_a_list_the_answers_of_people_serve_the_most_frequent_first(
    tmp_path: Path,
) -> None:
    write_questions(tmp_path, answers=None)
    task, _, _ = built(tmp_path)
    counts: Counter[str] = Counter()
    for number in range(5):
        for one in task.streams["questions"][0][number].questions:
            counts.update({a.answer: round(10 * a.weight) for a in one.answers})
    order = sorted(counts, key=lambda answer: (-counts[answer], answer))
    assert list(task.info().answers) == order


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (["red", "blue", "red"], "cannot be chosen"),
        (["red"], "fewer than two answers"),
        ([], "fewer than two answers"),
        (["red", "?"], "cannot be chosen"),
        (["red", 3], "cannot be chosen"),
        ("red", "has no list of answers"),
        (["red", "blue", "Red"], "reads like 'red'"),
    ],
)
def test_a_list_that_cannot_be_chosen_from_is_refused_before_the_run(
    answers: object, said: str, tmp_path: Path
) -> None:
    write_questions(tmp_path, answers=None)
    write_list(tmp_path / "asked", answers)
    with pytest.raises(DataError, match=said) as caught:
        built(tmp_path)
    assert caught.value.exit_code == 4
    assert caught.value.try_ or caught.value.details or "fewer" in caught.value.what


def test_a_damaged_list_and_data_of_one_answer_are_said(tmp_path: Path) -> None:
    write_questions(tmp_path, answers=None)
    (tmp_path / "asked" / "answers.json").write_bytes(b'{"answers": ["\xff"]')
    with pytest.raises(DataError, match=r"answers\.json has no list of answers"):
        built(tmp_path)
    single = [asked(tmp_path / "p", f"s{i}", [question(f"q{i}", red=1.0)]) for i in range(3)]
    painted_store(tmp_path / "one" / "asked", tmp_path / "p", single)
    with pytest.raises(DataError, match="every question of asked has the answer 'red'"):
        built(tmp_path / "one", data={"validation": []})


# ------------------------------------------------------------------ samples


def maker(root: Path, **changes: Any) -> QuestionSampleMaker:
    return task_without_data(questions_recipe(root, **changes)).sample_maker()  # type: ignore[return-value]


def sample_of(record: Record, root: Path, made: QuestionSampleMaker, epoch: int) -> QuestionSample:
    return made.of_questions(record, root / record.image, epoch)


def mirrored(record: Record, root: Path, made: QuestionSampleMaker) -> set[bool]:
    found = set()
    for epoch in range(40):
        bright = sample_of(record, root, made, epoch).picture[..., 0] > 200
        left, right = bright[:, :16].sum(), bright[:, -16:].sum()
        if left + right > 100:  # else the crop lost it
            found.add(bool(right > left))
    return found


def test_no_picture_is_mirrored_where_a_question_or_an_answer_names_a_side(tmp_path: Path) -> None:
    neutral = asked(tmp_path, "a", [question("a", "what is it", bright=1.0)])
    sided = asked(tmp_path, "b", [question("b"), question("c", "what is to the Left of it")])
    answered = asked(tmp_path, "c", [question("d"), question("e", "where is it", right=0.4)])
    made = maker(tmp_path, data={"augment": True})
    assert mirrored(neutral, tmp_path, made) == {False, True}
    assert mirrored(sided, tmp_path, made) == {False}
    assert mirrored(answered, tmp_path, made) == {False}
    released = maker(tmp_path, compat="official", data={"augment": True})
    assert released.settings.careful_flip
    assert mirrored(neutral, tmp_path, released) == {False}, "bright has the letters of right"
    assert mirrored(sided, tmp_path, released) == {False, True}, "Left has not those of left"


def test_answers_keep_their_weights_and_equal_ones_are_one(tmp_path: Path) -> None:
    people = question("a", red=0.4, Red=0.3, top_left=0.2, blue=0.0, **{"": 0.1})
    record = asked(tmp_path, "a", [people, question("b", "?!"), question("c", red=0.0)])
    made = maker(tmp_path)
    sample = sample_of(record, tmp_path, made, 0)
    assert len(sample.texts) == 1, "one has no word, the other no answer"
    ((first, second),) = sample.answers
    assert made.tokenizer.decode(first.ids) == "red"
    assert first.weight == pytest.approx(0.7)
    assert (made.tokenizer.decode(second.ids), second.weight) == ("top left", 0.2)
    assert (sample.unusable_answers, sample.empty) == (1, 1)
    assert first.ids[0] == made.tokenizer.cls_id
    assert made.tokenizer.sep_id not in first.ids


def test_a_long_question_is_cut_and_a_long_answer_left_out(tmp_path: Path) -> None:
    longest = " ".join(["red"] * 500)
    record = asked(tmp_path, "a", [question("a", longest, red=0.5, **{longest: 0.5})])
    sample = sample_of(record, tmp_path, maker(tmp_path), 0)
    assert len(sample.texts[0].ids) == 12
    assert sample.cut == 1, "of the twelve words"
    assert [len(own) for own in sample.answers] == [1]
    assert sample.unusable_answers == 1


def test_a_sample_is_the_same_whoever_makes_it_and_another_in_another_pass(tmp_path: Path) -> None:
    record = asked(tmp_path, "a", [question("a"), question("b")])
    made = maker(tmp_path, data={"augment": True})
    one, same = (sample_of(record, tmp_path, made, 0) for _ in range(2))
    assert np.array_equal(one.picture, same.picture)
    assert not np.array_equal(one.picture, sample_of(record, tmp_path, made, 1).picture)
    later = dataclasses.replace(record, questions=record.questions[1:])
    assert not np.array_equal(one.picture, sample_of(later, tmp_path, made, 0).picture)
    settings = questions_recipe(tmp_path)
    assert sample_settings(settings, task_without_data(settings).config).max_tokens == 12


# ------------------------------------------------------------------ the feed


def asked_in(batch: QuestionBatch) -> int:
    return batch.texts.packing.n_texts


@pytest.mark.parametrize("per_picture", [1, 2, None])
def test_every_question_comes_once_in_a_pass(per_picture: int | None, tmp_path: Path) -> None:
    write_questions(tmp_path, train=6)  # 1 + 2 + 3 + 1 + 2 + 3 questions
    data = {"questions": {"batch_size": 2, "per_picture": per_picture}, "validation": []}
    task, _, _ = built(tmp_path, data=data)
    feed = task.feed()
    turns = {1: 12, 2: 8, None: 6}[per_picture]
    assert feed.steps_per_epoch == turns // 2
    passes = []
    for lap in range(2):
        seen: list[str] = []
        together: set[tuple[str, ...]] = set()
        for step in range(feed.steps_per_epoch):
            for place in feed.stream.stream.places(1 + lap * feed.steps_per_epoch + step):
                ids = tuple(q.id for q in feed.stream.record_at(place).questions)
                assert len(ids) <= (per_picture or 3)
                together.add(ids)
                seen += ids
        assert len(seen) == len(set(seen)) == 12
        passes.append(together)
    if per_picture == 2:
        assert passes[0] != passes[1], "questions are dealt out anew in each pass"
    batch = feed.batches(1)[0]
    assert batch.n_pictures == 2
    assert asked_in(batch) == len(batch.picture_of_question_Q)


def test_the_feed_travels_to_loader_workers(root: Path) -> None:
    import pickle

    task, _, _ = built(root, data={"questions": {"per_picture": 1}})
    feed = task.feed()
    again = pickle.loads(pickle.dumps(feed))
    for step in (1, 2, 3):
        one, other = feed.batches(step)[0], again.batches(step)[0]
        assert one.record_ids == other.record_ids
        assert torch.equal(one.next_N, other.next_N)
        assert asked_in(one) == 4


def test_the_parts_of_an_update_are_that_update(root: Path) -> None:
    whole = built(root, data={"questions": {"batch_size": 4}})[0].feed().batches(2)[0]
    parts_ = built(root, train={"micro_batches": 2})[0].feed()
    parts = [parts_.batches(2, part)[0] for part in (0, 1)]
    assert whole.record_ids == parts[0].record_ids + parts[1].record_ids
    assert asked_in(whole) == sum(map(asked_in, parts))
    with pytest.raises(ConfigError, match=r"data\.questions\.batch_size is 4"):
        built(root, train={"micro_batches": 3})


def test_what_cannot_be_learnt_from_is_left_out_counted_and_named(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    made = [
        asked(pictures, "good", [question("a"), question("b", blue=1.0)]),
        asked(pictures, "torn", [question("c")]),
        asked(pictures, "mute", [question("d", "?!")]),
        asked(pictures, "hidden", [dataclasses.replace(question("e"), answers=())]),
    ]
    painted_store(tmp_path / "asked", pictures, made)
    (pictures / "torn.png").write_bytes(b"no picture")
    _, _, batch = built(tmp_path, data={"validation": []})
    assert batch.record_ids == ("good",)
    assert dict(batch.dropped) == {
        "not an image": 1,
        "empty text": 1,
        "no question with an answer": 1,
    }
    assert [bad.record_id for bad in batch.bad.examples] == ["torn"]


def test_data_without_an_answered_question_are_refused(tmp_path: Path) -> None:
    hidden = dataclasses.replace(question("e"), answers=())
    painted_store(tmp_path / "asked", tmp_path, [asked(tmp_path, "a", [hidden])])
    with pytest.raises(DataError, match="no answers to choose from") as caught:
        built(tmp_path, data={"validation": []})
    assert "scoring.answers" in (caught.value.try_ or "")
    write_list(tmp_path / "asked", ["red", "blue"])
    data = {"validation": [], "questions": {"per_picture": 1}}
    with pytest.raises(DataError, match="no picture with an answered question of split 'train'"):
        built(tmp_path, data=data)


# ------------------------------------------------------------------ foretelling


def test_a_part_of_an_update_is_foretold_with_and_without_the_stores(root: Path) -> None:
    settings = questions_recipe(root)
    there = synthetic_part(settings, task_without_data(settings), 2)
    ((batch, often),) = there.batches
    assert isinstance(batch, QuestionBatch)
    assert (batch.n_pictures, often) == (2, 1.0)
    assert there.looked_at == ("asked",)
    nowhere = questions_recipe(root / "nowhere", data={"questions": {"per_picture": 3}})
    ((longest, _),) = synthetic_part(nowhere, task_without_data(nowhere), 2).batches
    assert isinstance(longest, QuestionBatch)
    assert (longest.n_pictures, asked_in(longest)) == (2, 6)
    assert {group.length for group in longest.texts.packing.groups} == {12}
    assert longest.answers.packing.n_texts == 60


def test_under_compat_answers_are_ranked_as_released_unless_said_otherwise(root: Path) -> None:
    def scheme(**changes: Any) -> str:
        evaluation = built(root, **changes)[0].evaluation
        assert isinstance(evaluation, VqaEvaluation)
        return evaluation.scheme

    assert scheme() == "auto"
    assert scheme(compat="official") == "released"
    assert scheme(compat="official", scoring={"compat": "none"}) == "auto"
    assert scheme(compat="official", scoring={"scheme": "exact"}) == "exact"
