"""BLEU, ROUGE-L, CIDEr: against arithmetic that is done here in another way, and by hand."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.metrics.caption.hard import captions
from xvlm_core.errors import DataError
from xvlm_core.metrics.caption.bleu import Bleu
from xvlm_core.metrics.caption.cider import Cider
from xvlm_core.metrics.caption.frequencies import DocumentFrequencies
from xvlm_core.metrics.caption.ngrams import count
from xvlm_core.metrics.caption.rouge import RougeL


def split(texts):
    return [text.split() for text in texts]


def grams(words, n):
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


MADE = [captions(40, seed) for seed in range(3)]
FEW = [
    (
        ["the cat the cat on the mat", "a dog", "two men ride red bikes"],
        [
            ["the cat is on the mat", "there is a cat on the mat"],
            ["a dog runs", "the dog"],
            ["two men riding red bikes", "men ride bikes", "two men ride red bikes today"],
        ],
    )
]


def test_bleu_of_the_papers_example():
    # Papineni et al., section 2.1: the clipped unigram precision is 2/7
    candidate = ["the", "the", "the", "the", "the", "the", "the"]
    references = split(["the cat is on the mat", "there is a cat on the mat"])
    one = Bleu().score([candidate], [references])[0]
    assert one.corpus == pytest.approx(2 / 7, abs=1e-9)


def test_bleu_takes_the_closest_length_and_of_two_the_shorter():
    words = [str(i) for i in range(10)]
    # 4 words; 3 and 5 are equally close: the shorter one counts, no penalty for brevity
    exact = Bleu().score([words[:4]], [[words[:5], words[:3], words]])[0]
    assert exact.corpus == pytest.approx(1, abs=1e-9)
    # 4 words against 6: exp(1 - 6/4)
    short = Bleu().score([words[:4]], [[words[:6], words]])[0]
    assert short.corpus == pytest.approx(math.exp(-0.5), abs=1e-8)


def brute_bleu(candidates, references, order):
    right, there, length, closest = [0] * order, [0] * order, 0, 0
    for words, own in zip(candidates, references, strict=True):
        length += len(words)
        closest += sorted((abs(len(r) - len(words)), len(r)) for r in own)[0][1]
        for n in range(1, order + 1):
            for gram, times in grams(words, n).items():
                right[n - 1] += min(times, max(grams(r, n)[gram] for r in own))
            there[n - 1] += max(0, len(words) - n + 1)
    product = math.prod((r + 1e-15) / (t + 1e-9) for r, t in zip(right, there, strict=True))
    ratio = (length + 1e-15) / (closest + 1e-9)
    return product ** (1 / order) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1)


@pytest.mark.parametrize("case", [*FEW, *MADE])
def test_bleu_equals_brute_force(case):
    candidates, references = split(case[0]), [split(own) for own in case[1]]
    for n, score in enumerate(Bleu().score(candidates, references), start=1):
        assert score.corpus == pytest.approx(brute_bleu(candidates, references, n), abs=1e-12)
        each = [
            brute_bleu([words], [own], n) for words, own in zip(candidates, references, strict=True)
        ]
        np.testing.assert_allclose(score.each, each, atol=1e-12)
    assert Bleu().score_each(candidates, references).tolist() == each_of(candidates, references)


def each_of(candidates, references):
    return Bleu().score(candidates, references)[3].each.tolist()


def test_rouge_l_of_the_papers_example():
    # Lin, section 3.1: 3/4 and 2/4 with beta 1
    reference = ["police", "killed", "the", "gunman"]
    scorer = RougeL(beta=1)
    assert scorer.score_each([["police", "kill", "the", "gunman"]], [[reference]]) == [0.75]
    assert scorer.score_each([["the", "gunman", "kill", "police"]], [[reference]]) == [0.5]


def brute_common(first, second):
    """Longest sequence of words that is in both: all choices of words are tried."""
    for n in range(min(len(first), len(second)), 0, -1):
        if set(itertools.combinations(first, n)) & set(itertools.combinations(second, n)):
            return n
    return 0


def test_rouge_l_equals_brute_force():
    rng = random.Random(3)
    for _ in range(150):
        make = lambda: [rng.choice("abcd") for _ in range(rng.randint(1, 9))]  # noqa: E731
        words, own = make(), [make() for _ in range(rng.randint(1, 3))]
        precision = max(brute_common(words, r) / len(words) for r in own)
        recall = max(brute_common(words, r) / len(r) for r in own)
        weight = 1.2 * 1.2
        expected = (
            (1 + weight) * precision * recall / (recall + weight * precision)
            if precision and recall
            else 0
        )
        assert RougeL().score_each([words], [own])[0] == pytest.approx(expected, abs=1e-12)


def test_rouge_l_of_long_captions():
    words = [str(i % 70) for i in range(200)]
    other = words[50:] + words[:50]
    table = [[0] * 201 for _ in range(201)]
    for i, j in itertools.product(range(200), range(200)):
        same = words[i] == other[j]
        table[i + 1][j + 1] = table[i][j] + 1 if same else max(table[i][j + 1], table[i + 1][j])
    score = RougeL().score([words], [[other]])
    assert score.corpus == pytest.approx(table[200][200] / 200, abs=1e-12)


def test_cider_by_hand():
    # two pictures without a word in common: a caption equal to the only reference has cosine 1 for
    # each n; one with two of its words in order, of six and two words in all:
    a = ["w1", "w2", "w3", "w4", "w5", "w6"]
    b = ["v1", "v2", "v3", "v4"]
    scores = Cider().score([a[:2], b], [[a], [b]])
    n1 = 2 / math.sqrt(2 * 6)
    n2 = 1 / math.sqrt(1 * 5)
    penalty = math.exp(-((2 - 6) ** 2) / (2 * 36))
    assert scores.each == pytest.approx([10 * penalty * (n1 + n2) / 4, 10], abs=1e-12)
    plain = Cider(form="cider").score([a[:2], b], [[a], [b]])
    assert plain.each == pytest.approx([10 * (n1 + n2) / 4, 10], abs=1e-12)
    assert scores.corpus == pytest.approx(scores.each.mean())


def test_repeating_a_word_is_clipped_in_cider_d_only():
    a, b = ["w1", "w2"], ["v1", "v2"]
    clipped, plain = (
        Cider(form=form).score_each([["w1", "w1"], b], [[a], [b]])[0]
        for form in ("cider-d", "cider")
    )
    # weights (2, 0) against (1, 1), norms 2 and sqrt 2: min(2, 1) * 1 or 2 * 1
    assert clipped == pytest.approx(10 / 4 * 1 / (2 * math.sqrt(2)))
    assert plain == pytest.approx(10 / 4 * 2 / (2 * math.sqrt(2)))


def brute_cider(candidates, references, documents, clipped):
    """Vectors over all n-grams there are; ``documents``: those that frequencies are counted in."""
    scores = []
    for words, own in zip(candidates, references, strict=True):
        total = 0.0
        for n in range(1, 5):
            every = sorted({g for d in [*documents, own, [words]] for r in d for g in grams(r, n)})
            seen = [{g for r in d for g in grams(r, n)} for d in documents]
            have = [sum(g in document for document in seen) for g in every]
            idf = np.log(len(documents)) - np.log(np.maximum(1, have))
            counted = [grams(r, n) for r in (words, *own)]
            mine, *others = (idf * [times[g] for g in every] for times in counted)
            for reference, theirs in zip(own, others, strict=True):
                norm = np.linalg.norm(mine) * np.linalg.norm(theirs)
                first = np.minimum(mine, theirs) if clipped else mine
                cosine = first @ theirs / norm if norm else 0.0
                gap = max(0, len(words) - 1) - max(0, len(reference) - 1)
                penalty = math.exp(-(gap**2) / 72) if clipped else 1
                total += cosine * penalty / len(own) / 4
        scores.append(10 * total)
    return scores


@pytest.mark.parametrize("form", ["cider-d", "cider"])
def test_cider_equals_brute_force(form):
    for case in (FEW[0], captions(6, 5)):
        candidates, references = split(case[0]), [split(own) for own in case[1]]
        documents = [split(own) for own in captions(8, 6)[1]]
        for cider, counted in (
            (Cider(form=form), references),
            (Cider(DocumentFrequencies.of(documents), form=form), documents),
        ):
            expected = brute_cider(candidates, references, counted, form == "cider-d")
            each = cider.score_each(candidates, references)
            np.testing.assert_allclose(each, expected, atol=1e-12)
            at_once = cider.score(candidates, references)
            np.testing.assert_allclose(at_once.each, expected, atol=1e-12)
            assert at_once.corpus == pytest.approx(np.mean(expected))


def test_frozen_frequencies_make_a_caption_independent_of_the_others():
    candidates, references = split(MADE[0][0]), [split(own) for own in MADE[0][1]]
    cider = Cider(DocumentFrequencies.of(references))
    whole = cider.score_each(candidates, references)
    np.testing.assert_array_equal(whole, Cider().score_each(candidates, references))
    parts = [cider.score_each([c], [r])[0] for c, r in zip(candidates, references, strict=True)]
    np.testing.assert_array_equal(whole, parts)


def test_references_of_a_picture_are_weighed_once(monkeypatch: pytest.MonkeyPatch):
    candidates, references = split(MADE[1][0]), [split(own) for own in MADE[1][1]]
    ids = [f"picture {i}" for i in range(len(candidates))]
    cider = Cider(DocumentFrequencies.of(references))
    expected = cider.score_each(candidates, references)
    np.testing.assert_array_equal(cider.score_each(candidates, references, ids), expected)
    counted = []
    monkeypatch.setattr(
        "xvlm_core.metrics.caption.cider.count", lambda t: (counted.append(1), count(t))[1]
    )
    np.testing.assert_array_equal(cider.score_each(candidates, references, ids), expected)
    assert len(counted) == len(candidates)
    # a picture several times, as when several captions are drawn; other references: as new
    twice = cider.score_each([*candidates[:2]] * 2, [*references[:2]] * 2, [*ids[:2]] * 2)
    np.testing.assert_array_equal(twice, [*expected[:2]] * 2)
    swapped = cider.score_each(candidates[:1], references[3:4], ids[:1])
    np.testing.assert_array_equal(swapped, cider.score_each(candidates[:1], references[3:4]))


def test_few_pictures_are_kept_where_few_are_allowed():
    candidates, references = split(MADE[1][0]), [split(own) for own in MADE[1][1]]
    frequencies = DocumentFrequencies.of(references)
    expected = Cider(frequencies).score_each(candidates, references)
    for cached in (0, 1, 7):
        cider = Cider(frequencies, cached=cached)
        for _ in range(2):
            again = cider.score_each(candidates, references, range(len(candidates)))
            np.testing.assert_array_equal(again, expected)
        assert len(cider._kept) <= cached


def test_saved_frequencies_score_the_same(tmp_path: Path):
    candidates, references = split(MADE[2][0]), [split(own) for own in MADE[2][1]]
    made = DocumentFrequencies.of(references)
    file = tmp_path / "frequencies.json"
    made.save(file)
    loaded = DocumentFrequencies.load(file)
    assert loaded == made
    np.testing.assert_array_equal(
        Cider(loaded).score_each(candidates, references), Cider().score_each(candidates, references)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["frequencies.json"]
    first = file.read_bytes()
    DocumentFrequencies.of(references).save(file)
    assert file.read_bytes() == first


GOOD = {
    "format": "xvlm caption document frequencies",
    "version": 1,
    "documents": 3,
    "pictures_with": {"a": 2},
}


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        {**GOOD, "format": "other"},
        {**GOOD, "version": 2},
        {**GOOD, "documents": 0},
        {**GOOD, "documents": "3"},
        {**GOOD, "pictures_with": []},
        {**GOOD, "pictures_with": {"a": 4}},
        {**GOOD, "pictures_with": {"a": 0}},
        {**GOOD, "pictures_with": {"a": 1.5}},
        {**GOOD, "pictures_with": {"a b c d e": 2}},
        {**GOOD, "pictures_with": {"": 2}},
    ],
    ids=range(15),
)
def test_a_file_that_holds_no_frequencies_is_refused(tmp_path: Path, content):
    file = tmp_path / "frequencies.json"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(DataError) as refused:
        DocumentFrequencies.load(file)
    assert str(file) in refused.value.where
    assert "\n" not in refused.value.what


def test_no_captions_have_no_scores():
    assert len(Cider().score_each([], [])) == 0
    assert RougeL().score([], []).corpus == 0
    assert Cider().score([], []).corpus == 0
    assert len(Bleu().score_each([], [])) == 0
