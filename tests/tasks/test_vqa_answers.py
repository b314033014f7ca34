"""What is answered and chosen from: which list, which weights, how long, from which crop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.painted import painted_store
from tests.tasks.questions import asked, question, questions_recipe, write_list
from xvlm_core.data import question_samples
from xvlm_core.data.question_samples import QuestionSampleMaker, question_batch
from xvlm_core.data.store import Store
from xvlm_core.tasks.registry import build_task
from xvlm_core.tasks.vqa_answers import answers_to_choose_from
from xvlm_core.train.synthetic import task_without_data


def maker(root: Path, **changes: Any) -> QuestionSampleMaker:
    return task_without_data(questions_recipe(root, **changes)).sample_maker()  # type: ignore[return-value]


def stores(root: Path) -> list[Store]:
    """Two stores without a list; of the first, some questions are of another split."""
    first = [
        asked(root, "a", [question("1", red=1.0), question("2", red=0.4, blue=0.6)]),
        asked(root, "v", [question("3", pink=1.0), question("4", pink=1.0)], split="val"),
    ]
    second = [asked(root, "b", [question("5", green=0.9, red=0.1)])]
    return [painted_store(root / name, root, made) for name, made in (("x", first), ("y", second))]


def test_the_first_store_that_has_a_list_gives_it(tmp_path: Path) -> None:
    both = stores(tmp_path)
    write_list(tmp_path / "y", ["cyan", "pink"])
    assert answers_to_choose_from(None, both, "train") == ("cyan", "pink")
    write_list(tmp_path / "x", ["yes", "no"])
    assert answers_to_choose_from(None, both, "train") == ("yes", "no")
    assert answers_to_choose_from(None, both[::-1], "train") == ("cyan", "pink")


def test_without_a_list_the_people_of_all_stores_are_counted(tmp_path: Path) -> None:
    both = stores(tmp_path)
    assert answers_to_choose_from(None, both, "train") == ("red", "green", "blue")
    # two questions name red, one green and one blue: only the people tell green before blue
    assert answers_to_choose_from(None, both[:1], "train") == ("red", "blue")


def test_an_answer_may_be_longer_than_a_question(tmp_path: Path) -> None:
    """It is the decoder's room that bounds it, 64 tokens here; a question is cut at 12."""
    long = " ".join(["red"] * 20)
    record = asked(tmp_path, "a", [question("a", **{long: 1.0})])
    sample = maker(tmp_path).of_questions(record, tmp_path / record.image, 0)
    assert [len(own.ids) for own in sample.answers[0]] == [21]
    assert sample.unusable_answers == 0


def test_what_is_left_out_of_a_batch_is_counted_in_it(tmp_path: Path) -> None:
    made = maker(tmp_path)
    people = question("a", red=0.5, **{"": 0.25, " ".join(["red"] * 99): 0.25})
    records = [asked(tmp_path, "a", [people, question("b", "?!")]), asked(tmp_path, "b", [people])]
    samples = [made.of_questions(r, tmp_path / r.image, 0) for r in records]
    batch = question_batch(samples, 3)
    assert batch.counts["unusable_answers"] == 4
    assert question_batch(samples[:1], 3).counts["unusable_answers"] == 2


def test_a_batch_tells_whose_question_and_whose_answer_each_is(tmp_path: Path) -> None:
    made = maker(tmp_path)
    of = [[question("a", red=0.5, blue=0.5)], [question("b"), question("c", no=0.7, yes=0.3)]]
    records = [asked(tmp_path, f"r{n}", questions) for n, questions in enumerate(of)]
    samples = [made.of_questions(r, tmp_path / r.image, 0) for r in records]
    batch = question_batch(samples, 3)
    assert batch.picture_of_question_Q.tolist() == [0, 1, 1]
    assert batch.question_of_answer_A.tolist() == [0, 0, 1, 2, 2]
    assert batch.weight_A.tolist() == pytest.approx([0.5, 0.5, 1.0, 0.7, 0.3])


def test_in_another_pass_a_picture_is_seen_in_another_crop(tmp_path: Path) -> None:
    made = [asked(tmp_path / "p", name, [question(name)]) for name in "ab"]
    painted_store(tmp_path / "asked", tmp_path / "p", made)
    data = {"questions": {"batch_size": 2}, "validation": [], "augment": True}
    changes = {"data": data, "scoring": {"scheme": "open"}}
    feed = build_task(questions_recipe(tmp_path, **changes)).feed()
    seen = []
    for step in (1, 2):  # a pass each
        (batch,) = feed.batches(step)
        order = [batch.record_ids.index(name) for name in "ab"]
        seen.append(batch.pictures_ICHW[order])
    assert (seen[0] != seen[1]).flatten(1).any(1).all()


def test_a_crop_keeps_half_of_the_picture_at_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    cropped = question_samples.augment.pretrain_picture

    def watched(*args: Any, **how: Any) -> Any:
        seen.append(how["scale"])
        return cropped(*args, **how)

    monkeypatch.setattr(question_samples.augment, "pretrain_picture", watched)
    record = asked(tmp_path, "a", [question("a")])
    maker(tmp_path, data={"augment": True}).of_questions(record, tmp_path / record.image, 0)
    assert seen == [(0.5, 1.0)]
