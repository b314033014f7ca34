"""The paper's figures for X-VLM, row by row, to be shown beside ours (ICML 2022, arXiv 2111.08276).

A figure belongs to a data set, not to a task: it is looked up for a store only if the store was
made from that data set. The synthetic world and own data have none, whatever their names are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

PretrainingData = Literal["4M", "16M"]


@dataclass(frozen=True)
class PaperFigure:
    """One figure of the paper.

    Attributes:
        task: whose evaluation it is; ``retrieval, zero-shot`` is retrieval by a pre-trained model.
        dataset: as ``xvlm prepare-data`` names it.
        split: as our stores name it.
        metric: name of our score.
        data: pre-training data of the row.
        value: a fraction.
        table: where it stands.
        n: items of the official split; None: the paper's count is not of our kind of item.
        image_size: side of the pictures in pixels; None: the paper does not say.
        how: what the paper's model of this row learnt by, where it has several.
    """

    task: str
    dataset: str
    split: str
    metric: str
    data: PretrainingData
    value: float
    table: str
    n: int | None
    image_size: int | None
    how: str = ""


def _retrieval(
    task: str, table: str, image_size: int | None, rows: dict[PretrainingData, str]
) -> list[PaperFigure]:
    """Rows of R@1 / R@5 / R@10 in per cent: COCO text and image, Flickr30K text and image."""
    places = [
        (dataset, direction, k, n)
        for dataset, n_pictures, n_texts in (
            ("coco-karpathy", 5000, 25010),
            ("flickr30k", 1000, 5000),
        )
        for direction, n in (("text", n_pictures), ("image", n_texts))
        for k in (1, 5, 10)
    ]
    return [
        PaperFigure(
            task,
            dataset,
            "test",
            f"{direction} R@{k}",
            data,
            round(float(figure) / 100, 4),
            table,
            n,
            image_size,
        )
        for data, figures in rows.items()
        for (dataset, direction, k, n), figure in zip(places, figures.split(), strict=True)
    ]


def _rows(
    task: str,
    dataset: str,
    metric: str,
    table: str,
    splits: dict[str, int],
    rows: dict[PretrainingData, str],
) -> list[PaperFigure]:
    """A row of per cents for each pre-training data, a column for each split."""
    return [
        PaperFigure(
            task, dataset, split, metric, data, round(float(figure) / 100, 4), table, n, 384
        )
        for data, figures in rows.items()
        for (split, n), figure in zip(splits.items(), figures.split(), strict=True)
    ]


def _captions(how: str, rows: dict[PretrainingData, str]) -> list[PaperFigure]:
    """Rows of BLEU-4 and CIDEr, both times 100, of the captions of COCO's Karpathy test split."""
    at = ("captioning", "coco-karpathy", "test")
    return [
        PaperFigure(*at, metric, data, round(float(figure) / 100, 4), "Table 3", 5000, 384, how)
        for data, figures in rows.items()
        for metric, figure in zip(("BLEU-4", "CIDEr"), figures.split(), strict=True)
    ]


_REFCOCO_PLUS = {"val": 10758, "testA": 5726, "testB": 4889}

FIGURES: tuple[PaperFigure, ...] = (
    *_retrieval(
        "retrieval",
        "Table 2",
        384,
        {
            "4M": "80.4 95.5 98.2 63.1 85.7 91.6 96.8 99.8 100.0 86.1 97.4 98.7",
            "16M": "81.2 95.6 98.2 63.4 85.8 91.5 97.1 100.0 100.0 86.9 97.3 98.7",
        },
    ),
    *_retrieval(
        "retrieval, zero-shot",
        "Table 6",
        None,
        {
            "4M": "70.8 92.1 96.5 55.6 82.7 90.0 85.3 97.8 99.6 71.9 93.3 96.4",
            "16M": "71.6 93.1 97.0 56.1 83.0 89.8 87.7 98.6 99.6 74.9 94.4 97.1",
        },
    ),
    *_rows(
        "nlvr2",
        "nlvr2",
        "accuracy",
        "Table 3",
        {"val": 6982, "test": 6967},
        {"4M": "84.16 84.21", "16M": "84.41 84.76"},
    ),
    *_rows(
        "grounding",
        "refcoco+",
        "accuracy@0.5",
        "Table 3",
        _REFCOCO_PLUS,
        {"4M": "80.17 86.36 71.00", "16M": "84.51 89.00 76.91"},
    ),
    *_rows(
        "weak_grounding",
        "refcoco+",
        "accuracy@0.5",
        "section 4.6",
        _REFCOCO_PLUS,
        {"4M": "68.46 76.53 57.09", "16M": "77.26 84.11 67.13"},
    ),
    *_captions("cross-entropy", {"4M": "39.8 133.1", "16M": "39.9 134.0"}),
    *_captions("CIDEr optimisation", {"4M": "41.3 140.8", "16M": "41.0 140.3"}),
)

_DATASETS: dict[str, tuple[str, ...]] = {
    "refcoco": ("refcoco+", "refcocog", "refcoco"),
    "karpathy": ("coco-karpathy", "flickr30k"),
    "nlvr2": ("nlvr2",),
}
"""Data sets that a source of ``xvlm prepare-data`` reads."""

_WORDS = {
    "coco-karpathy": re.compile(r"(?:^|[/_.-])(dataset_coco|coco_karpathy|coco)(?=$|[/_.-])"),
    "flickr30k": re.compile(r"(?:^|[/_.-])(dataset_flickr30k|flickr30k)(?=$|[/_.-])"),
    "refcoco+": re.compile(r"(?:^|[/_.-])refcoco\+(?=$|[/_.-])"),
    "refcocog": re.compile(r"(?:^|[/_.-])refcocog(?=$|[/_.-])"),
    "refcoco": re.compile(r"(?:^|[/_.-])refcoco(?=$|[/_.-])"),
}


def dataset_of(store: str, source: str, command: str) -> str | None:
    """The data set that a store was made from, if the paper has figures for such a one.

    Args:
        store: its name: tells RefCOCO+ from RefCOCO, where the command does not.
        source: what it was read by (manifest).
        command: what was typed to make it (manifest): the names of files tell.
    """
    known = _DATASETS.get(source, ())
    if len(known) == 1:
        return known[0]
    words = command.lower().split()
    if source in words:  # xvlm prepare-data SOURCE
        del words[: words.index(source) + 1]
    for option in ("-o", "--output"):  # where it was written to says nothing about what was read
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
    named = [name for name in known if any(_WORDS[name].search(word) for word in words)]
    if len(named) == 1:
        return named[0]
    return store.lower() if store.lower() in known else None


def figures(task: str, dataset: str, split: str) -> list[PaperFigure]:
    """The figures of a split of a data set; none where the paper has none."""
    return [f for f in FIGURES if (f.task, f.dataset, f.split) == (task, dataset, split)]


def said(found: Sequence[PaperFigure]) -> str:
    """The figures of one metric as one text: ``80.17 (4M), 84.51 (16M), Table 3``."""
    rows = ", ".join(f"{100 * f.value:.4g} ({f.data}{', ' if f.how else ''}{f.how})" for f in found)
    return f"{rows}, {found[0].table}"
