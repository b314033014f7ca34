"""Ranked answers against the plain way: every answer by itself, every token by itself."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.data.painted import TOKENIZER
from tests.weights.shapes import small_config
from xvlm_core.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from xvlm_core.errors import DataError
from xvlm_core.inference import answer_ranking
from xvlm_core.inference.answer_ranking import (
    EXACT_UP_TO,
    Candidates,
    Ranking,
    rank_answers,
    scheme_for,
)
from xvlm_core.models.build import build_model
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.sizes import ModelConfig
from xvlm_core.models.text import TextStates
from xvlm_core.models.vqa import VQA

ANSWERS = (
    "red", "red box", "red box red", "red ball", "blue", "green ball", "a dog", "doggy", "a", "the",
    "green", "green ball near a box",
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> VQA:
    tree = small_config().model_dump()
    tree["text"]["vocab_size"] = TOKENIZER.vocab_size
    tree |= {"heads": (), "decoder_layers": 2}
    torch.manual_seed(1)
    made = build_model(ModelConfig.model_validate(tree)).eval()
    assert isinstance(made, VQA)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.6 / parameter[0].numel() ** 0.5)
    return made


@pytest.fixture(scope="module")
def questions(model: VQA) -> TextStates:
    torch.manual_seed(2)
    pictures = torch.randn(2, 3, *(model.config.vision.image_size,) * 2)
    texts = PackedTexts.from_lists([[2, 8, 9], [2, 5, 6, 7], [2, 10]])
    with torch.no_grad():
        return model.read(pictures, texts, torch.tensor([0, 1, 1]))


@pytest.fixture(scope="module")
def candidates() -> Candidates:
    return Candidates.of(ANSWERS, TOKENIZER, 12)


@torch.no_grad()
def log_probability(model: VQA, questions: TextStates, question: int, tokens: list[int]) -> float:
    """Of an answer, token after token, each from a text of its own."""
    total = 0.0
    for at in range(1, len(tokens)):
        texts = PackedTexts.from_lists([tokens[:at]])
        logits = model.answer_logits(questions, texts, torch.tensor([question]))
        total += logits[-1].log_softmax(-1)[tokens[at]].item()
    return total


def ranked(model: VQA, questions: TextStates, candidates: Candidates, **how: object) -> Ranking:
    with torch.no_grad():
        return rank_answers(model, questions, candidates, **how)  # type: ignore[arg-type]


def test_exact_ranking_is_by_the_probability_of_every_whole_answer(
    model: VQA, questions: TextStates, candidates: Candidates
) -> None:
    found = ranked(model, questions, candidates, scheme="exact")
    assert found.answer_QK.shape == (3, len(ANSWERS))
    for question in range(3):
        plain = torch.tensor(
            [
                log_probability(model, questions, question, [*tokens, candidates.end])
                for tokens in candidates.tokens
            ]
        )
        order = plain.argsort(descending=True)
        assert found.answer_QK[question].tolist() == order.tolist()
        assert torch.allclose(found.log_probability_QK[question], plain[order], atol=1e-4)
        assert torch.allclose(found.probability_QK[question], plain[order].softmax(0), atol=1e-5)
    assert len({tuple(row) for row in found.answer_QK.tolist()}) == 3, "questions differ"


def test_two_steps_take_the_best_first_words_and_count_every_word_once(
    model: VQA, questions: TextStates, candidates: Candidates
) -> None:
    exact = ranked(model, questions, candidates, scheme="exact")
    whole = ranked(model, questions, candidates, scheme="two-step", k=99)
    assert torch.equal(exact.answer_QK, whole.answer_QK)
    assert torch.allclose(exact.probability_QK, whole.probability_QK, atol=1e-6)
    few = ranked(model, questions, candidates, scheme="two-step", k=5)
    with torch.no_grad():
        first_QA = answer_ranking.first_words(model, questions, candidates)
    for question in range(3):
        best = first_QA[question].argsort(descending=True, stable=True)[:5].tolist()
        assert set(few.answer_QK[question].tolist()) == set(best)
        kept = [n for n in exact.answer_QK[question].tolist() if n in best]
        assert few.answer_QK[question].tolist() == kept
        assert few.probability_QK[question].sum().item() == pytest.approx(1)


def test_the_released_scheme_counts_the_first_word_twice(
    model: VQA, questions: TextStates, candidates: Candidates
) -> None:
    once = ranked(model, questions, candidates, scheme="two-step", k=99)
    twice = ranked(model, questions, candidates, scheme="released", k=99)
    assert not torch.equal(once.answer_QK, twice.answer_QK)
    with torch.no_grad():
        first_QA = answer_ranking.first_words(model, questions, candidates)
    score = twice.log_probability_QK + first_QA.gather(1, twice.answer_QK)
    assert torch.allclose(twice.probability_QK, score.softmax(-1), atol=1e-6)
    by_number = [r.log_probability_QK.gather(1, r.answer_QK.argsort(1)) for r in (once, twice)]
    assert torch.allclose(*by_number, atol=1e-6), "what an answer's probability is stays the same"


@pytest.mark.parametrize("scheme", ["exact", "two-step", "released"])
def test_portions_and_company_change_nothing(
    scheme: str,
    model: VQA,
    questions: TextStates,
    candidates: Candidates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = ranked(model, questions, candidates, scheme=scheme, k=6)
    for most_scores, most_tokens in ((1, 10**6), (10**6, 1), (5 * TOKENIZER.vocab_size, 7)):
        monkeypatch.setattr(answer_ranking, "_MOST_SCORES", most_scores)
        monkeypatch.setattr(answer_ranking, "_MOST_TOKENS", most_tokens)
        parts = ranked(model, questions, candidates, scheme=scheme, k=6)
        assert torch.equal(parts.answer_QK, whole.answer_QK)
        assert torch.allclose(parts.probability_QK, whole.probability_QK, atol=1e-5)
    alone = ranked(model, questions.select([1]), candidates, scheme=scheme, k=6)
    assert torch.equal(alone.answer_QK[0], whole.answer_QK[1])


def test_a_state_that_answers_share_is_looked_up_once_and_no_portion_is_too_large(
    model: VQA, questions: TextStates, candidates: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    read: list[int] = []
    predict, states = model.decoder.predict_tokens, model.answer_states

    def counted(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(len(hidden))
        return predict(hidden)

    def watched(own: TextStates, texts: PackedTexts, of: torch.Tensor) -> TextStates:
        read.append(texts.packing.n_texts)
        return states(own, texts, of)

    monkeypatch.setattr(model.decoder, "predict_tokens", counted)
    monkeypatch.setattr(model, "answer_states", watched)
    ranked(model, questions, candidates, scheme="exact")
    prefixes = {tokens[:n] for tokens in candidates.tokens for n in range(2, len(tokens) + 1)}
    assert sum(seen) == 3 * (1 + len(prefixes))
    beginnings = sum(
        any(other != one and other[: len(one)] == one for other in candidates.tokens)
        for one in candidates.tokens
    )
    assert beginnings >= 4
    assert sum(read) == 3 * (1 + len(ANSWERS) - beginnings), "a beginning has no row of its own"
    seen.clear()
    monkeypatch.setattr(answer_ranking, "_MOST_SCORES", 6 * TOKENIZER.vocab_size)
    ranked(model, questions, candidates, scheme="exact")
    assert max(seen) <= 6
    tokens: list[int] = []
    monkeypatch.setattr(answer_ranking, "_MOST_SCORES", 1 << 20)
    monkeypatch.setattr(answer_ranking, "_MOST_TOKENS", 9)
    monkeypatch.setattr(
        model,
        "answer_states",
        lambda own, texts, of: (tokens.append(texts.packing.n_tokens), states(own, texts, of))[1],
    )
    ranked(model, questions, candidates, scheme="exact")
    assert max(tokens) <= 9, "tokens are bounded, too"


def test_equal_answers_come_in_the_order_of_the_list(
    model: VQA, questions: TextStates, candidates: Candidates
) -> None:
    flat = build_model(model.config).eval()
    assert isinstance(flat, VQA)
    with torch.no_grad():
        for parameter in flat.decoder.parameters():
            parameter.zero_()
    one_word = Candidates.of(("red", "green", "blue", "box", "ball"), TOKENIZER, 12)
    for scheme in ("exact", "two-step"):
        found = ranked(flat, questions, one_word, scheme=scheme, k=3)
        assert found.answer_QK[:, :3].tolist() == [[0, 1, 2]] * 3


def test_short_lists_are_scored_whole_unless_asked_otherwise() -> None:
    assert scheme_for(EXACT_UP_TO) == "exact"
    assert scheme_for(EXACT_UP_TO + 1) == "two-step"


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (["red"], "a list of 1 answer: there is nothing to choose from"),
        ([], "a list of no answers"),
        (["red", "blue", "red"], "comes twice: 'red'"),
        (["red", "Red"], "reads like 'red': 'Red'"),
        (["red", " "], "is empty: ' '"),
        (["red", "a " * 20], "is too long: 'a a"),
        (["zebra", "lion", "red"], "reads like 'zebra': 'lion'"),
        (["red", "", "red"], "2 of 3 answers to choose from cannot be used"),
    ],
)
def test_a_list_that_cannot_be_chosen_from_is_refused(answers: list[str], said: str) -> None:
    with pytest.raises(DataError) as caught:
        Candidates.of(answers, TOKENIZER, 12)
    assert said in caught.value.what
    assert caught.value.exit_code == 4
    assert caught.value.try_


def test_a_long_list_of_one_and_two_words_makes_a_tree(model: VQA) -> None:
    words = [f"w{i}" for i in range(30)]
    tokenizer = Tokenizer.from_vocab([*SPECIAL_TOKENS, *words])
    answers = [*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))]
    made = Candidates.of(answers, tokenizer, 8)
    rows = answer_ranking._rows_of(made, range(len(made)))
    assert len(rows) == 30, "29 of two words, and the one word that begins none of them"
    assert sum(len(row.positions) for row in rows) == len(answers)
    assert sorted(column for row in rows for at, _, column in row.terms if at == 1) == list(
        range(len(answers))
    )
