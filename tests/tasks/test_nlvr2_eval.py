"""Evaluation of NLVR2: every statement once, on any number of ranks; hand-made figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.painted import painted_store
from tests.tasks.pairs import pair, pairs_recipe, write_mixed, write_pairs
from xvlm_core.data.store import Store
from xvlm_core.models.nlvr2 import NLVR2
from xvlm_core.tasks.evaluations import evaluation_class
from xvlm_core.tasks.nlvr2_eval import Nlvr2Evaluation, score
from xvlm_core.tasks.registry import build_task
from xvlm_core.train.evaluation import evaluate
from xvlm_core.train.synthetic import task_without_data

CPU = torch.device("cpu")


def model_of(root: Path) -> tuple[Nlvr2Evaluation, NLVR2]:
    torch.manual_seed(0)
    task = build_task(pairs_recipe(root))
    model = task.build_model()
    assert isinstance(model, NLVR2)
    assert isinstance(task.evaluation, Nlvr2Evaluation)
    with torch.no_grad():
        model.cls_head[3].weight.mul_(30)
    return task.evaluation, model.eval()


def evaluation_of(store: Store, split: str, **more: Any) -> Nlvr2Evaluation:
    tokenizer = task_without_data(pairs_recipe(store.folder.parent)).tokenizer
    sizes = {"image_size": 64, "max_words": 12, "max_tokens": 12}
    return Nlvr2Evaluation([store], split, tokenizer, **{**sizes, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_ranks_ask_every_statement_once_and_find_the_same(
    world_size: int, tmp_path: Path
) -> None:
    write_pairs(tmp_path, val=7, text="the red circle", same_sentence="s")
    evaluation, model = model_of(tmp_path)
    whole = evaluate(evaluation, model, CPU)
    assert whole is not None
    parts = [
        p
        for rank in range(world_size)
        for batch in evaluation.validation(rank, world_size)
        for p in evaluation.predict(model, batch)
    ]
    assert [p["id"] for p in parts] == [f"v{i}" for i in range(7)]
    assert evaluation.score(parts) == whole.scores
    assert len({p["probability"] for p in parts}) == 1, "equal pairs, in batches of any size"
    truth = {f"v{i}": bool(i % 2) for i in range(7)}
    assert {p["id"]: p["label"] for p in parts} == truth


def test_accuracy_consistency_and_majority_of_hand_made_answers() -> None:
    def answer(id: str, label: bool, probability: float | None, group: str | None) -> Any:
        return {"id": id, "label": label, "probability": probability, "group": group}

    made = [
        answer("a", True, 0.9, "s"),
        answer("b", False, 0.1, "s"),
        answer("c", True, 0.5, "t"),
        answer("d", True, 0.49, "t"),
        answer("e", False, 0.51, None),
        answer("f", True, None, "u"),
    ]
    scores = score(made, "val")
    assert scores["accuracy"].value == 3 / 6
    assert (scores["consistency"].value, scores["consistency"].n) == (1 / 3, 3)
    assert scores["baseline: majority"].value == 4 / 6
    assert "always true" in scores["baseline: majority"].convention
    assert {s.split for s in scores.values()} == {"val"}
    alone = score([answer("e", False, 0.2, None)], "val")
    assert "consistency" not in alone, "it is not known what belongs together"
    assert alone["accuracy"].value == 1
    assert "always false" in alone["baseline: majority"].convention
    with pytest.raises(AssertionError, match="twice"):
        score([made[0], made[0]], "val")


def test_references_and_no_answer_make_a_prediction_that_is_wrong(tmp_path: Path) -> None:
    write_pairs(tmp_path, val=4, same_sentence="s")
    evaluation, model = model_of(tmp_path)
    found = evaluate(evaluation, model, CPU)
    assert found is not None
    references = {r["id"]: r for r in evaluation.references()}
    joined = [
        {"id": p["id"], "probability": p["probability"], **references[p["id"]]}
        for p in found.predictions
    ]
    assert evaluation.score(joined) == found.scores
    silent = [{**evaluation.NO_ANSWER, **reference} for reference in references.values()]
    assert evaluation.score(silent)["accuracy"].value == 0
    assert evaluation_class("nlvr2") is Nlvr2Evaluation


def test_references_open_no_picture(tmp_path: Path) -> None:
    store = write_pairs(tmp_path, val=3)
    for picture in (tmp_path / "pictures").glob("*.png"):
        picture.unlink()
    assert len(list(evaluation_of(store, "val").references())) == 3


def test_what_cannot_be_asked_is_counted_and_named(tmp_path: Path) -> None:
    made = [pair(tmp_path / "p", name, split="val") for name in "abcd"]
    made[1] = dataclasses.replace(
        made[1], statement=dataclasses.replace(made[1].statement, label=None)
    )
    made[2] = dataclasses.replace(
        made[2], statement=dataclasses.replace(made[2].statement, text="...")
    )
    store = painted_store(tmp_path / "pairs", tmp_path / "p", made)
    (tmp_path / "p" / "d-left.png").unlink()
    for batch_records in (1, 2, 32):
        evaluation = evaluation_of(store, "val", batch_records=batch_records)
        batches = list(evaluation.validation())
        assert [item.id for batch in batches for item in batch.items] == ["a"]
        assert evaluation.dropped == {"no label": 1, "empty text": 1, "missing": 1}
        assert sum(sum(batch.dropped.values()) for batch in batches) == 3
        assert evaluation.examples == ["b: no label", "c: empty text", "d: missing"]
    assert [r["id"] for r in evaluation.references()] == ["a", "d"], "no picture is opened"
    assert evaluation.dropped == {"no label": 1, "empty text": 1}


def test_a_picture_of_many_statements_is_encoded_once(tmp_path: Path) -> None:
    pictures = ("one.png", "two.png")
    made = [pair(tmp_path / "p", str(i), pictures=pictures, split="val") for i in range(4)]
    made.append(pair(tmp_path / "p", "turned", pictures=pictures[::-1], split="val"))
    store = painted_store(tmp_path / "pairs", tmp_path / "p", made)
    (batch,) = evaluation_of(store, "val").validation()
    assert batch.n_pictures == 2
    assert batch.first_B.tolist() == [0, 0, 0, 0, 1]
    assert batch.second_B.tolist() == [1, 1, 1, 1, 0]


def test_single_pictures_of_the_store_are_not_asked_about(tmp_path: Path) -> None:
    store = write_mixed(tmp_path, singles=5, pairs=3)
    evaluation = evaluation_of(store, "train", limit=2)
    items = [item.id for batch in evaluation.validation() for item in batch.items]
    assert items == ["p0", "p1"]
    assert not evaluation.dropped


def test_ids_are_unique_where_stores_have_the_same_records(tmp_path: Path) -> None:
    store = write_pairs(tmp_path, val=2)
    twin = write_pairs(tmp_path / "deep", val=2)
    tokenizer = task_without_data(pairs_recipe(tmp_path)).tokenizer
    sizes = {"image_size": 64, "max_words": 12, "max_tokens": 12}
    both = Nlvr2Evaluation([store, twin, store], "val", tokenizer, **sizes)
    ids = [item.id for batch in both.validation() for item in batch.items]
    assert len(set(ids)) == len(ids) == 4
    assert [r["id"] for r in both.references()] == ids
