"""Answers written word by word: each token the most probable one, up to the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tasks.questions import ANSWERS, asked, question, questions_recipe, write_question_model
from xvlm_core.inference.answer_writing import write_answers
from xvlm_core.inference.answerer import Answerer
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.text import TextStates
from xvlm_core.tasks.registry import build_task
from xvlm_core.weights.folder import LoadedModel, load_model_folder


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model_folder(write_question_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def questions(loaded: LoadedModel) -> TextStates:
    torch.manual_seed(1)
    texts = PackedTexts.from_lists([[2, 90, 91], [2, 95, 96, 97], [2, 100], [2, 7, 8, 9, 10]])
    with torch.no_grad():
        return loaded.model.read(  # type: ignore[attr-defined, no-any-return]
            torch.randn(2, 3, 64, 64), texts, torch.tensor([0, 1, 1, 0])
        )


@torch.no_grad()
def one_by_one(
    loaded: LoadedModel, questions: TextStates, question: int, longest: int
) -> tuple[list[int], float]:
    """At most so many words; after the last one the end, if that is the most probable token."""
    ids, total = [loaded.tokenizer.cls_id], 0.0
    while True:
        logits = loaded.model.answer_logits(  # type: ignore[attr-defined]
            questions, PackedTexts.from_lists([ids]), torch.tensor([question])
        )[-1].log_softmax(-1)
        token = int(logits.argmax())
        if token != loaded.tokenizer.sep_id and len(ids) == longest + 1:
            return ids, total
        ids.append(token)
        total += logits.max().item()
        if token == loaded.tokenizer.sep_id:
            return ids, total


@pytest.mark.parametrize("longest", [1, 3, 10])
def test_each_token_is_the_most_probable_one_whatever_the_company(
    longest: int, loaded: LoadedModel, questions: TextStates
) -> None:
    with torch.no_grad():
        written = write_answers(loaded.model, questions, loaded.tokenizer, longest)  # type: ignore[arg-type]
    assert len(written) == 4
    for number, found in enumerate(written):
        ids, total = one_by_one(loaded, questions, number, longest)
        assert found.text == loaded.tokenizer.decode(ids).removeprefix("##")
        assert found.probability == pytest.approx(torch.tensor(total).exp().item(), rel=1e-3)
        assert found.is_whole == (ids[-1] == loaded.tokenizer.sep_id)


def test_the_answerer_answers_about_pictures_in_memory(loaded: LoadedModel, tmp_path: Path) -> None:
    from PIL import Image

    picture = Image.new("RGB", (70, 40), (200, 20, 20))
    answerer = Answerer(loaded, "cpu")
    first, second = answerer.answer(picture, ["what colour is it", "Is there a star?"], top=2)
    assert (first.question, second.read_as) == ("what colour is it", "is there a star")
    assert len(first.answers) == 2
    picture.save(tmp_path / "a.png")
    (again, _) = answerer.answer(tmp_path / "a.png", [first.question, second.question])
    assert [a.answer for a in again.answers[:2]] == [a.answer for a in first.answers]
    assert set(ANSWERS) >= {a.answer for a in again.answers}
    free = Answerer(loaded, "cpu", freely=True).answer(picture, [first.question])
    assert len(free[0].answers) == 1


def test_a_model_that_learnt_writes_what_it_learnt(tmp_path: Path) -> None:
    from tests.data.painted import painted_store
    from xvlm_core.tasks.base import Moment

    both = [question("a", "what colour", red=1.0), question("b", "how many", top_left=1.0)]
    painted_store(tmp_path / "asked", tmp_path, [asked(tmp_path, "a", both)])
    torch.manual_seed(0)
    task = build_task(
        questions_recipe(tmp_path, data={"questions": {"batch_size": 1}, "validation": []})
    )
    model = task.build_model()
    (batch,) = task.feed().batches(1)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        moment = Moment(1, 0.0, torch.Generator())
        task.losses(model, batch, moment).total().backward()  # type: ignore[union-attr]
        optimizer.step()
    answerer = Answerer(LoadedModel(model.eval(), task.tokenizer, task.info()), freely=True)  # type: ignore[arg-type, attr-defined]
    asked_ = answerer.answer(tmp_path / "a.png", ["what colour", "how many"])
    assert [one.answers[0].answer for one in asked_] == ["red", "top left"]
