from __future__ import annotations

import pytest

from xvlm_core.metrics.paper import FIGURES, dataset_of, figures, said

PREPARE = "xvlm prepare-data"


def test_the_rows_add_up_to_what_the_paper_says_of_them() -> None:
    """A figure once for each metric, split and pre-training data; no typing error in a column."""
    assert len({(f.task, f.dataset, f.split, f.metric, f.data, f.how) for f in FIGURES}) == len(
        FIGURES
    )
    of_captions = [f for f in FIGURES if f.task == "captioning"]
    assert len(of_captions) == 2 * 2 * 2
    others = [f for f in FIGURES if f.task != "captioning"]
    keys = [(f.task, f.dataset, f.split, f.metric, f.data) for f in others]
    assert len(set(keys)) == len(keys) == 2 * (12 + 12 + 2 + 3 + 3)
    assert all(0.5 < f.value <= 1 for f in others)
    by = dict(zip(keys, others, strict=True))
    for (task, dataset, split, metric, data), figure in by.items():
        more = by[task, dataset, split, metric, "16M"].value
        # five times the pictures help, but for two figures that the paper has one in a hundred off
        assert more - figure.value > -0.0035, metric
        if metric.endswith("R@1"):
            fives = [by[task, dataset, split, metric.replace("@1", f"@{k}"), data] for k in (5, 10)]
            assert figure.value < fives[0].value <= fives[1].value
    both = {f.data: f.value for f in figures("grounding", "refcoco+", "testA")}
    assert both == {"4M": 0.8636, "16M": 0.89}


@pytest.mark.parametrize(
    ("store", "source", "command", "found"),
    [
        ("refcoco+", "refcoco", f"{PREPARE} refcoco --root x -o data/refcoco+", "refcoco+"),
        ("mine", "refcoco", f"{PREPARE} refcoco --root refer/refcoco+ -o data/mine", "refcoco+"),
        ("r", "refcoco", f"{PREPARE} refcoco --annotations refcoco+_val.json", "refcoco+"),
        ("refcoco", "refcoco", f"{PREPARE} refcoco --root a/refcoco+ -o data/refcoco", "refcoco+"),
        ("refcocog", "refcoco", f"{PREPARE} refcoco FOLDER -o data/refcocog", "refcocog"),
        ("mine", "refcoco", f"{PREPARE} refcoco FOLDER -o data/refcoco+", None),
        ("flickr30k", "karpathy", f"{PREPARE} karpathy F -o data/flickr30k", "flickr30k"),
        ("x", "karpathy", f"{PREPARE} karpathy F/dataset_coco.json -o y", "coco-karpathy"),
        ("nlvr", "nlvr2", f"{PREPARE} nlvr2 F -o data/nlvr", "nlvr2"),
        # a stand-in has the name of what it stands for, and nothing else of it
        ("refcoco+", "world", f"{PREPARE} world --as refcoco+ -o data", None),
        ("nlvr2", "jsonl", f"{PREPARE} jsonl nlvr2.jsonl -o data/nlvr2", None),
        ("coco-karpathy", "coco", f"{PREPARE} coco FOLDER -o data/coco-karpathy", None),
    ],
)
def test_a_store_is_of_a_data_set_by_what_it_was_made_from(
    store: str, source: str, command: str, found: str | None
) -> None:
    assert dataset_of(store, source, command) == found


def test_files_of_the_released_layout_name_their_data_set() -> None:
    command = f"{PREPARE} refcoco --annotations F/finetune_refcoco+_val.json --images I"
    assert dataset_of("refcoco", "refcoco", command) == "refcoco+"
    command = f"{PREPARE} refcoco --annotations F/refcocog_train.json --images I"
    assert dataset_of("mine", "refcoco", command) == "refcocog"


def test_figures_are_shown_with_their_table_and_data() -> None:
    assert said(figures("grounding", "refcoco+", "val")) == "80.17 (4M), 84.51 (16M), Table 3"
    assert figures("grounding", "refcoco", "val") == []
    cider = [f for f in figures("captioning", "coco-karpathy", "test") if f.metric == "CIDEr"]
    assert said(cider) == (
        "133.1 (4M, cross-entropy), 134 (16M, cross-entropy), 140.8 (4M, CIDEr optimisation), "
        "140.3 (16M, CIDEr optimisation), Table 3"
    )
    assert [f.value for f in cider][:2] == [1.331, 1.34], "as ours is: not times 100"
    assert figures("grounding", "refcoco+", "train") == []
