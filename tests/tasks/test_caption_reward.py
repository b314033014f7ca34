"""Rewards equal those of the COCO caption tool, given the same tokens and frequencies."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider_scorer import CiderScorer

from tests.data.painted import painted_record, painted_store
from tests.tasks.recipes import records, write_stores
from xvlm_core.data.store import Store
from xvlm_core.errors import DataError
from xvlm_core.metrics.caption.frequencies import DocumentFrequencies
from xvlm_core.tasks.caption_reward import CaptionReward, tokens

WORDS = ["a", "red", "blue", "small", "circle", "square", "left", "of", "two", "the", "and"]


def drawn(n: int, seed: int, longest: int = 12) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(0, longest))) for _ in range(n)]


DOCUMENTS = [drawn(5, seed) for seed in range(40)]
CAPTIONS = drawn(40, 99)


def frequencies_of(documents: list[list[str]]) -> DocumentFrequencies:
    return DocumentFrequencies.of([[tokens(one) for one in own] for own in documents])


def spaced(caption: str) -> str:
    return " ".join(tokens(caption))


def test_cider_d_is_that_of_the_coco_caption_tool() -> None:
    """Where the documents are those that are compared, as its code assumes."""
    theirs = CiderScorer()
    for caption, own in zip(CAPTIONS, DOCUMENTS, strict=True):
        theirs.cook_append(spaced(caption), [spaced(one) for one in own])
    _, expected = theirs.compute_score()
    ours = CaptionReward(frequencies_of(DOCUMENTS))(CAPTIONS, DOCUMENTS)
    assert ours == pytest.approx(expected.tolist(), abs=1e-9)
    assert max(ours) > 1


def test_frequencies_are_those_of_the_training_captions() -> None:
    """Other documents: the tool's own function, with frequencies from outside."""
    frequencies = frequencies_of(DOCUMENTS[:25])
    expected = []
    for caption, own in zip(CAPTIONS, DOCUMENTS, strict=True):
        theirs = CiderScorer(spaced(caption), [spaced(one) for one in own])
        theirs.crefs *= 25  # it takes the number of documents from what is compared
        theirs.document_frequency = defaultdict(float, frequencies.pictures_with)
        expected += theirs.compute_cider()
    ours = CaptionReward(frequencies)(CAPTIONS, DOCUMENTS)
    assert ours == pytest.approx(expected, abs=1e-9)


def test_bleu_is_that_of_the_coco_caption_tool() -> None:
    theirs = BleuScorer(n=4)
    for caption, own in zip(CAPTIONS, DOCUMENTS, strict=True):
        theirs += (spaced(caption), [spaced(one) for one in own])
    _, each = theirs.compute_score(option="closest")
    ours = CaptionReward(frequencies_of(DOCUMENTS), cider=0.0, bleu=1.0)(CAPTIONS, DOCUMENTS)
    assert ours == pytest.approx(each[3], abs=1e-9)


def test_a_mixture_adds_up_what_is_weighed() -> None:
    frequencies = frequencies_of(DOCUMENTS)
    both = CaptionReward(frequencies, cider=0.5, bleu=2.0)(CAPTIONS, DOCUMENTS)
    cider = CaptionReward(frequencies)(CAPTIONS, DOCUMENTS)
    bleu = CaptionReward(frequencies, cider=0.0, bleu=1.0)(CAPTIONS, DOCUMENTS)
    assert both == pytest.approx([0.5 * c + 2 * b for c, b in zip(cider, bleu, strict=True)])


def test_a_caption_that_stops_in_the_middle_is_worth_less_than_its_words() -> None:
    reward = CaptionReward(frequencies_of(DOCUMENTS))
    reference = ["a red circle left of the blue square"]
    whole, cut = reward(
        ["a red circle left of the blue square", "a red circle left of the"], [reference] * 2
    )
    assert whole == pytest.approx(10.0)
    assert cut < 7.5
    assert reward([""], [reference]) == [pytest.approx(0.0, abs=0.2)]


def test_a_document_is_a_picture_of_the_training_split(tmp_path: Path) -> None:
    write_stores(tmp_path)
    store = Store.open(tmp_path / "captions")
    frequencies = CaptionReward.of_stores([store], "train", 12).frequencies
    made = records(tmp_path / "pictures", 7)
    assert frequencies.documents == 7
    counted = Counter(word for r in made for word in {w for c in r.captions for w in c.split()})
    counted["<eos>"] = 7
    words = {gram[0]: n for gram, n in frequencies.pictures_with.items() if len(gram) == 1}
    assert words == {word: n for word, n in counted.items() if n > 1}
    seen, other = (next(w for w, n in counted.items() if n == 2), "zeppelin")
    assert frequencies.weight((other,)) == pytest.approx(math.log(7))
    assert frequencies.weight((seen,)) == pytest.approx(math.log(7 / 2))
    once = [word for word, n in counted.items() if n == 1]
    assert all(frequencies.weight((word,)) == frequencies.weight((other,)) for word in once)


def test_documents_are_cut_as_captions_are_and_a_picture_without_any_is_none(
    tmp_path: Path,
) -> None:
    pictures = tmp_path / "pictures"
    made = [
        painted_record(pictures, "a", [], captions=("red star near blue", "?!")),
        painted_record(pictures, "b", [], captions=("Red star near blue!",)),
        painted_record(pictures, "c", [], captions=("?!",)),
    ]
    frequencies = CaptionReward.of_stores(
        [painted_store(tmp_path / "s", pictures, made)], "train", 3
    ).frequencies
    assert frequencies.documents == 2
    assert {" ".join(gram) for gram in frequencies.pictures_with if len(gram) > 2} == {
        "red star near", "star near <eos>", "red star near <eos>"
    }  # fmt: skip


def test_one_picture_alone_would_reward_nothing(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    made = [painted_record(pictures, "a", [], captions=("red star",))]
    store = painted_store(tmp_path / "s", pictures, made)
    with pytest.raises(DataError, match="every reward would be 0"):
        CaptionReward.of_stores([store], "train", 3)
    assert CaptionReward.of_stores([store], "train", 3, bleu=1.0).frequencies.documents == 1
