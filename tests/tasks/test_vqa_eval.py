"""Evaluation of VQA: every question once, on any number of ranks; hand-made figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.painted import paint, painted_store
from tests.tasks.questions import (
    ANSWERS,
    asked,
    question,
    questions_recipe,
    write_list,
    write_question_model,
    write_questions,
)
from xvlm_core.config.schema import ScoringSection
from xvlm_core.data.store import Store
from xvlm_core.errors import DataError
from xvlm_core.inference.answer_ranking import rank_answers
from xvlm_core.inference.answer_writing import write_answers
from xvlm_core.models.text import TextStates
from xvlm_core.models.vqa import VQA
from xvlm_core.tasks.evaluations import evaluation_class
from xvlm_core.tasks.registry import build_task
from xvlm_core.tasks.vqa_eval import VqaEvaluation
from xvlm_core.tasks.vqa_scores import score
from xvlm_core.train.evaluation import evaluate
from xvlm_core.train.synthetic import task_without_data
from xvlm_core.weights.folder import load_model_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VQA:
    made = load_model_folder(write_question_model(tmp_path_factory.mktemp("model"))).model
    assert isinstance(made, VQA)
    return made


def evaluation_of(store: Store, split: str = "val", **more: Any) -> VqaEvaluation:
    tokenizer = task_without_data(questions_recipe(store.folder.parent)).tokenizer
    sizes = {"image_size": 64, "max_words": 12, "max_tokens": 12, "max_answer_tokens": 64}
    return VqaEvaluation([store], split, tokenizer, **{**sizes, **more})


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_ranks_ask_every_question_once_and_find_the_same(
    world_size: int, tmp_path: Path, model: VQA
) -> None:
    store = write_questions(tmp_path, val=7)
    evaluation = evaluation_of(store, batch_records=2)
    whole = evaluate(evaluation, model, CPU)
    assert whole is not None
    with torch.no_grad():
        parts = [
            p
            for rank in range(world_size)
            for batch in evaluation.validation(rank, world_size)
            for p in evaluation.predict(model, batch)
        ]
    assert [p["id"] for p in parts] == [f"v{i}-q{k}" for i in range(7) for k in range(1 + i % 3)]
    assert parts == whole.predictions
    assert evaluation.score(parts) == whole.scores
    assert whole.scores["accuracy"].n == 13
    assert len({p["probability"] for p in parts}) >= 3
    assert {p["answer"] for p in parts} <= set(ANSWERS)


def test_a_picture_is_encoded_once_for_all_its_questions(tmp_path: Path, model: VQA) -> None:
    evaluation = evaluation_of(write_questions(tmp_path, val=4))
    (batch,) = evaluation.validation()
    assert batch.n_pictures == 4
    assert batch.picture_of_question_Q.tolist() == [0, 1, 1, 2, 2, 2, 3]


def test_a_question_is_about_its_own_picture(tmp_path: Path, model: VQA) -> None:
    """The same questions about two pictures: as about each of them alone."""
    both = [question("1"), question("2", "is there a star")]
    made = [asked(tmp_path, name, both, split="val") for name in "ab"]
    paint(tmp_path / "b.png", 120, 90, [(0, 0, 0, 0), (30, 20, 120, 90)])
    store = painted_store(tmp_path / "s", tmp_path, made)
    write_list(tmp_path / "s", ANSWERS)
    together, alone = (
        evaluate(evaluation_of(store, batch_records=n), model, CPU).predictions  # type: ignore[union-attr]
        for n in (2, 1)
    )
    said = [p["probability"] for p in together]
    assert said == pytest.approx([p["probability"] for p in alone], abs=1e-5)
    assert abs(said[0] - said[2]) > 1e-3, "the pictures differ"


# ------------------------------------------------------------------ figures


def answer(id: str, said: str, people: list[str], **more: Any) -> dict[str, Any]:
    base = {"id": id, "record": id, "answer": said, "answers": people}
    return {**base, "kind": None, "answer_kind": None, **more}


def test_accuracy_by_kind_and_the_best_constant_of_hand_made_answers() -> None:
    made = [
        answer("a", "red", ["red"] * 10, kind="colour", answer_kind="other"),
        answer("b", "blue", ["red"] * 8 + ["blue"] * 2, kind="colour", answer_kind="other"),
        answer("c", "yes", ["no"] * 10, kind="is", answer_kind="yes/no"),
        answer("d", "2", ["two", "2", "2", "2"] + ["3"] * 6, kind="count", answer_kind="number"),
        answer("e", "", [], kind="count"),
    ]
    scores = score(made, "val")
    blue = (2 * 1 / 3 + 8 * 2 / 3) / 10
    two = (3 * 2 / 3 + 7) / 10
    assert scores["accuracy"].value == pytest.approx((1 + blue + 0 + two) / 4)
    assert scores["accuracy"].n == 4, "what is hidden counts in no figure"
    assert scores["exact match"].value == 1 / 4, "of the last, more said 3"
    assert scores["accuracy, answers: other"].value == pytest.approx((1 + blue) / 2)
    assert scores["accuracy, questions: count"].value == pytest.approx(two)
    assert scores["accuracy, questions: count"].n == 1
    assert scores["accuracy, answers: yes/no"].value == 0
    assert scores["baseline: one answer"].value == pytest.approx(2 / 4)
    assert "'red'" in scores["baseline: one answer"].convention
    assert {s.split for s in scores.values()} == {"val"}
    behind = [answer(id, "", [id, *["no"] * 9]) for id in "ab"]
    assert "'no'" in score(behind, "val")["baseline: one answer"].convention, "of all people"
    assert score(made[-1:], "test") == {}
    assert set(score(made[:1], "val")) == {"accuracy", "exact match", "baseline: one answer"}
    with pytest.raises(AssertionError, match="twice"):
        score([made[0], made[0]], "val")


def test_the_questions_of_a_picture_are_drawn_together_for_an_interval() -> None:
    """40 pictures of six questions each; those of every other one are answered, all of them."""
    made = [
        answer(f"{n}-{k}", "red" if n % 2 else "blue", ["red"] * 10, record=f"p{n}")
        for n in range(40)
        for k in range(6)
    ]
    half = 1.96 * (0.25 / 40) ** 0.5
    for name in ("accuracy", "exact match"):
        found = score(made, "val")[name]
        assert found.value == 0.5
        assert found.interval == pytest.approx((0.5 - half, 0.5 + half), abs=0.03)


def test_what_each_of_the_people_said_follows_from_the_shares(tmp_path: Path) -> None:
    records = [
        asked(
            tmp_path,
            "a",
            [
                question("1", red=0.7, blue=0.2),
                question("2", red=1.0),
                question("3", red=0.666667, blue=0.333333),
                dataclasses.replace(question("4"), answers=()),
            ],
            split="val",
            people={"3": 3},
            types={"1": ["what colour", "other"]},
        ),
        asked(tmp_path, "b", [question("5")], split="val", question_kinds=["colour"]),
        asked(tmp_path, "c", [question("6", red=0.96, blue=0.04)], split="val"),
    ]
    references = list(evaluation_of(painted_store(tmp_path / "s", tmp_path, records)).references())
    people = {r["id"]: r["answers"] for r in references}
    assert people["1"] == ["red"] * 7 + ["blue"] * 2 + ["?"], "one said something without a word"
    assert people["2"] == ["red"] * 10
    assert people["3"] == ["red", "red", "blue"]
    assert people["4"] == []
    assert set(people["6"]) == {"red", "blue"}, "a small share is somebody's, too"
    kinds = {r["id"]: (r["kind"], r["answer_kind"]) for r in references}
    assert kinds["1"] == ("what colour", "other")
    assert kinds["2"] == (None, None)
    assert kinds["5"] == ("colour", None)


# ------------------------------------------------------------------ items


def test_references_and_no_answer_make_a_prediction_that_is_wrong(
    tmp_path: Path, model: VQA
) -> None:
    evaluation = evaluation_of(write_questions(tmp_path))
    found = evaluate(evaluation, model, CPU)
    assert found is not None
    references = {r["id"]: r for r in evaluation.references()}
    joined = [{"answer": p["answer"], **references[p["id"]]} for p in found.predictions]
    assert evaluation.score(joined) == found.scores
    silent = [{**evaluation.NO_ANSWER, **reference} for reference in references.values()]
    assert evaluation.score(silent)["accuracy"].value == 0
    assert evaluation_class("vqa") is VqaEvaluation


def test_references_open_no_picture_and_need_no_list(tmp_path: Path) -> None:
    store = write_questions(tmp_path, answers=None)
    for picture in (tmp_path / "pictures").glob("*.png"):
        picture.unlink()
    assert len(list(evaluation_of(store, train_split="nothing").references())) == 7


def test_what_cannot_be_asked_is_counted_and_named(tmp_path: Path, model: VQA) -> None:
    made = [
        asked(tmp_path / "p", "good", [question("a"), question("b", "?!")], split="val"),
        asked(tmp_path / "p", "torn", [question("c"), question("d")], split="val"),
    ]
    store = painted_store(tmp_path / "s", tmp_path / "p", made)
    write_list(tmp_path / "s", ANSWERS)
    (tmp_path / "p" / "torn.png").write_bytes(b"no picture")
    evaluation = evaluation_of(store)
    found = evaluate(evaluation, model, CPU)
    assert found is not None
    assert [p["id"] for p in found.predictions] == ["a"]
    assert found.dropped == {"empty text": 1, "not an image": 2}
    assert set(evaluation.examples) == {"b: empty text", "torn: not an image"}


def test_questions_without_an_id_of_their_own_get_one(tmp_path: Path) -> None:
    made = [
        asked(tmp_path, "x", [question("1"), question(""), question("2")], split="val"),
        asked(tmp_path, "y", [question("1"), question("3")], split="val"),
    ]
    store = painted_store(tmp_path / "s", tmp_path, made)
    ids = [r["id"] for r in evaluation_of(store).references()]
    assert ids == ["x#0", "x#1", "2", "y#0", "3"], "the same id twice tells nothing apart"
    own = [r["question_id"] for r in evaluation_of(store).references()]
    assert own == ["1", "x#1", "2", "1", "3"], "what the test server knows"
    twice = VqaEvaluation(
        [store, painted_store(tmp_path / "t", tmp_path, made[1:])],
        "val",
        task_without_data(questions_recipe(tmp_path)).tokenizer,
        image_size=64,
        max_words=12,
        max_tokens=12,
        max_answer_tokens=64,
    )
    both = [r["id"] for r in twice.references()]
    assert len(set(both)) == len(both) == 7
    assert [r["question_id"] for r in twice.references()][-2:] == ["1", "3"]


def test_the_file_of_the_test_server_has_numbers_for_ids() -> None:
    rows = [{"question_id": "262148000", "answer": "red"}, {"question_id": "q-1", "answer": ""}]
    assert VqaEvaluation.submission(rows) == [
        {"question_id": 262148000, "answer": "red"},
        {"question_id": "q-1", "answer": ""},
    ]


# ------------------------------------------------------------------ how answers are found


def test_answers_are_those_of_the_scoring_the_model_or_the_store(
    tmp_path: Path, model: VQA
) -> None:
    store = write_questions(tmp_path)
    recipe = questions_recipe(tmp_path)
    task = build_task(recipe)
    info = task.info()

    def chosen(scoring: ScoringSection, **more: Any) -> tuple[str, ...]:
        evaluation = VqaEvaluation.of_model(
            [store], "val", task.tokenizer, info.model_copy(update=more), scoring=scoring
        )
        return evaluation.candidates().answers

    assert chosen(ScoringSection(), answers=("yes", "no")) == ("yes", "no")
    assert chosen(ScoringSection(), answers=()) == ANSWERS
    listed = tmp_path / "mine.json"
    listed.write_text('["cyan", "pink"]')
    assert chosen(ScoringSection(answers=str(listed)), answers=("yes", "no")) == ("cyan", "pink")
    with pytest.raises(DataError, match=r"cannot read .*gone"):
        chosen(ScoringSection(answers=str(tmp_path / "gone")))


@pytest.mark.parametrize("scheme", ["auto", "exact", "two-step", "released", "open"])
def test_every_scheme_answers_every_question(scheme: str, tmp_path: Path, model: VQA) -> None:
    evaluation = evaluation_of(write_questions(tmp_path), scheme=scheme, k=3)
    found = evaluate(evaluation, model, CPU)
    assert found is not None
    assert len(found.predictions) == 7
    assert all(0 < p["probability"] <= 1 for p in found.predictions)
    if scheme != "open":
        assert {p["answer"] for p in found.predictions} <= set(ANSWERS)


@pytest.mark.parametrize("scheme", ["exact", "two-step", "released", "open"])
def test_the_answer_is_the_best_of_the_scheme_that_was_asked_for(
    scheme: str, tmp_path: Path, model: VQA
) -> None:
    evaluation = evaluation_of(write_questions(tmp_path), scheme=scheme, k=3)
    (batch,) = evaluation.validation()
    with torch.no_grad():
        found = [(p["answer"], p["probability"]) for p in evaluation.predict(model, batch)]
        states = model.read(batch.pictures_ICHW, batch.texts, batch.picture_of_question_Q)
        best = {"open": written(model, states, evaluation)}
        for name in ("exact", "two-step", "released"):
            ranking = rank_answers(model, states, evaluation.candidates(), scheme=name, k=3)  # type: ignore[arg-type]
            answers = [ANSWERS[n] for n in ranking.answer_QK[:, 0].tolist()]
            best[name] = list(zip(answers, ranking.probability_QK[:, 0].tolist(), strict=True))
    assert found == best[scheme]
    assert all(found != other for name, other in best.items() if name != scheme)


def written(model: VQA, states: TextStates, evaluation: VqaEvaluation) -> list[tuple[str, float]]:
    return [(w.text, w.probability) for w in write_answers(model, states, evaluation.tokenizer)]


def test_the_settings_of_the_scoring_reach_the_ranking(tmp_path: Path) -> None:
    store = write_questions(tmp_path)
    task = build_task(questions_recipe(tmp_path))
    scoring = ScoringSection(candidates=3, scheme="two-step")
    made = VqaEvaluation.of_model([store], "val", task.tokenizer, task.info(), scoring=scoring)
    assert (made.k, made.scheme) == (3, "two-step")
    assert made.max_answer_tokens == task.config.text.max_positions == 64
    assert made.max_tokens == 12, "a list may have longer answers than questions are"


def test_a_longer_question_may_be_asked_than_is_learnt_from(tmp_path: Path) -> None:
    store = write_questions(tmp_path)
    info = build_task(questions_recipe(tmp_path)).info()
    tokenizer = task_without_data(questions_recipe(tmp_path)).tokenizer

    def limits(**scoring: Any) -> tuple[int, int]:
        made = VqaEvaluation.of_model(
            [store], "val", tokenizer, info, scoring=ScoringSection(**scoring)
        )
        return made.max_words, made.max_tokens

    assert limits() == (12, 12)
    assert limits(max_words=50) == (50, 64), "and its tokens are not cut"


def test_people_whose_answer_is_not_known_are_no_answer_of_the_baseline() -> None:
    rows = [answer(str(n), "red", ["red"] * 4 + ["?"] * 6) for n in range(2)]
    scores = score(rows, "val")
    assert "always 'red'" in scores["baseline: one answer"].convention
    assert scores["exact match"].value == 1.0
