"""Who asks what: many pictures and questions in one call, and what is told beside an answer."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from tests.inference.conftest import picture
from tests.tasks.captions import write_captioner
from tests.tasks.questions import write_question_model
from xvlm_core.errors import DataError
from xvlm_core.inference import answerer as module
from xvlm_core.inference.answer_writing import MAX_WORDS, write_answers
from xvlm_core.inference.answerer import Answered, Answerer
from xvlm_core.inference.writing import CaptionWriter
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.vqa import VQA
from xvlm_core.weights.folder import LoadedModel, load_model_folder

QUESTIONS = ("what colour is the circle", "is there a star", "how many red squares are there")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model_folder(write_question_model(tmp_path_factory.mktemp("model")))


def told(answers: list[Answered]) -> list[tuple[str, str, float]]:
    return [(a.question, a.answers[0].answer, a.answers[0].probability) for a in answers]


@pytest.mark.parametrize("at_once", [1, 4, 64])
def test_each_question_is_about_its_own_picture_however_many_are_asked_at_once(
    at_once: int, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_QUESTIONS_AT_ONCE", at_once)
    answerer = Answerer(loaded, "cpu")
    pictures = [picture(60, 40, seed).point(lambda v, s=seed: v * s // 3) for seed in range(4)]
    asked = [
        (pictures[0], QUESTIONS[:2]),
        (pictures[1], ()),
        (pictures[2], QUESTIONS),
        (pictures[3], QUESTIONS[:1]),
    ]
    found = answerer.answer_many(asked)
    assert [len(answers) for answers in found] == [2, 0, 3, 1]
    for (shown, questions), answers in zip(asked, found, strict=True):
        for one, alone in zip(told(answers), told(answerer.answer(shown, questions)), strict=True):
            assert one[:2] == alone[:2]
            assert one[2] == pytest.approx(alone[2], abs=1e-5)
    of_the_first = [answers[0].answers[0].probability for answers in found if answers]
    gaps = [abs(a - b) for n, a in enumerate(of_the_first) for b in of_the_first[:n]]
    assert min(gaps) > 1e-3, "pictures differ"


def test_no_drop_out_is_left_on(loaded: LoadedModel, tmp_path: Path) -> None:
    """A model that comes out of training answers as one that was loaded does."""
    trained = copy.deepcopy(loaded.model).train()
    assert not Answerer(LoadedModel(trained, loaded.tokenizer, loaded.info), "cpu").model.training
    captioner = load_model_folder(write_captioner(tmp_path))
    captioner.model.train()
    assert not CaptionWriter(captioner, device="cpu").model.training


def test_a_free_answer_has_the_probability_of_its_text(loaded: LoadedModel) -> None:
    answerer = Answerer(loaded, "cpu", freely=True)
    seen: list[float] = []

    def watched(*args: object) -> object:
        written = write_answers(*args)  # type: ignore[arg-type]
        seen.extend(one.probability for one in written)
        return written

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_answers", watched)
        found = answerer.answer(picture(50, 50), QUESTIONS)
    assert [answer.answers[0].probability for answer in found] == seen
    assert all(0 < probability < 1 for probability in seen)


def test_words_that_the_model_does_not_know_are_told(loaded: LoadedModel) -> None:
    (found,) = Answerer(loaded, "cpu").answer(picture(50, 50), ["is there a red \u4e9e"])
    assert found.unknown_words == ("\u4e9e",)
    assert found.to_json()["unknown_words"] == ["\u4e9e"]


def test_an_empty_list_is_not_that_of_the_model(loaded: LoadedModel) -> None:
    with pytest.raises(DataError, match="a list of no answers"):
        Answerer(loaded, "cpu", answers=())


def test_an_answer_that_does_not_end_has_ten_words_or_what_the_model_has_room_for(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded.tokenizer, "decode", lambda ids: " ".join(map(str, ids)))
    model = copy.deepcopy(loaded.model)
    assert isinstance(model, VQA)
    assert model.decoder.lm_head is not None
    positions = loaded.info.config.text.max_positions
    with torch.no_grad():
        model.decoder.lm_head.bias[loaded.tokenizer.sep_id] -= 1e4
        states = model.read(
            torch.randn(1, 3, 64, 64), PackedTexts.from_lists([[2, 90]]), torch.tensor([0])
        )
        seen: list[int] = []
        read = model.answer_states
        model.answer_states = lambda q, texts, own: (  # type: ignore[method-assign]
            seen.append(texts.packing.n_tokens),
            read(q, texts, own),
        )[1]
        short, one = (write_answers(model, states, loaded.tokenizer, n)[0] for n in (MAX_WORDS, 1))
        assert max(seen) == MAX_WORDS + 1 == 11, "the end may follow the tenth word"
        (usual,) = write_answers(model, states, loaded.tokenizer)
        (long,) = write_answers(model, states, loaded.tokenizer, 2 * positions)
    assert max(seen) == positions
    assert usual == short
    assert not short.is_whole
    assert not long.is_whole
    said = short.text.split()
    assert len(said) == 1 + MAX_WORDS, "no token more than was allowed"
    assert one.text.split() == said[:2]
