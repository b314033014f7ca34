"""BLEU, ROUGE-L and CIDEr equal pycocoevalcap's, on made captions and on real ones."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from tests.metrics.caption.hard import captions, strings
from xvlm_core.metrics.caption.ptb import tokenise
from xvlm_core.metrics.caption.scores import score_captions

SCORED = ("bleu", "rouge-l", "cider")


def check(candidates: dict[str, str], references: dict[str, list[str]]) -> None:
    """All figures, of the set and of each caption, to 1e-9 (CIDEr: of its range of 10)."""
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    ours = score_captions(candidates, references, SCORED)
    res = {image: [" ".join(tokenise(text))] for image, text in candidates.items()}
    gts = {image: [" ".join(tokenise(t)) for t in references[image]] for image in candidates}
    expected = {}
    for n, pair in enumerate(zip(*bleu.compute_score(gts, res, verbose=0), strict=True), start=1):
        expected[f"BLEU-{n}"] = pair
    expected["ROUGE-L"] = rouge.compute_score(gts, res)
    expected["CIDEr"] = cider.compute_score(gts, res)
    assert ours.corpus.keys() == expected.keys()
    assert ours.image_ids == tuple(candidates)
    for name, (corpus, each) in expected.items():
        assert ours.corpus[name] == pytest.approx(float(corpus), abs=1e-9), name
        np.testing.assert_allclose(ours.each[name], each, rtol=0, atol=1e-9, err_msg=name)


def test_made_captions():
    for seed in range(6):
        candidates, references = captions(80, seed)
        check(dict(map_of(candidates)), dict(map_of(references)))


def map_of(values):
    return ((f"picture {number}", value) for number, value in enumerate(values))


def test_hard_strings():
    texts = strings(600, seed=11)
    references = [texts[i : i + 3] for i in range(0, 600, 3)]
    candidates = [own[0] + " " + texts[-1 - i] for i, own in enumerate(references)]
    check(dict(map_of(candidates)), dict(map_of(references)))


def test_one_picture_alone():
    check({"a": "a man rides a horse"}, {"a": ["a man on a horse", "man riding"]})


def test_real_captions(shared: Path):
    folder = shared / "data" / "coco" / "annotations"
    if not folder.is_dir():
        pytest.skip("no ../shared/data/coco beside the repository")
    by_picture: dict[str, list[str]] = defaultdict(list)
    for file in sorted(folder.glob("captions_*.json")):
        for annotation in json.loads(file.read_text(encoding="utf-8"))["annotations"]:
            by_picture[str(annotation["image_id"])].append(annotation["caption"])
    # one caption of each picture against its others, and against another picture's
    check(
        {image: own[0] for image, own in by_picture.items()},
        {image: own[1:] for image, own in by_picture.items()},
    )
    images = list(by_picture)
    others = random.Random(0).sample(images, len(images))
    check(
        {image: by_picture[other][0] for image, other in zip(images, others, strict=True)},
        {image: own[1:] for image, own in by_picture.items()},
    )
