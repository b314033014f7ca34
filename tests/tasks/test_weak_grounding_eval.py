"""Grounding without boxes is asked and scored as grounding with boxes is."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.painted import painted_record, painted_store
from xvlm_core.config.schema import ScoringSection
from xvlm_core.data.store import Store
from xvlm_core.errors import ConfigError
from xvlm_core.inference.checkpoints import builtin_folder
from xvlm_core.inference.heatmap import cam_layer
from xvlm_core.inference.proposals import ProposalIndex, usable
from xvlm_core.models.sizes import base, tiny
from xvlm_core.sources.prepare import prepare
from xvlm_core.tasks.grounding_eval import BoxXYXY
from xvlm_core.tasks.saved_predictions import read_answers
from xvlm_core.tasks.weak_grounding_eval import (
    BY_MAP,
    BY_PROPOSAL,
    EvaluationWarning,
    WeakGroundingEvaluation,
    WeakGroundingItem,
    _prediction,
    with_the_box_before,
)
from xvlm_core.train.evaluation import evaluate
from xvlm_core.weights.folder import LoadedModel, load_model_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def built_in() -> LoadedModel:
    folder = builtin_folder()
    if folder is None:
        pytest.skip("no built-in model")
    return load_model_folder(folder)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """The same pictures with the boxes of all things as proposals, and without."""
    root = tmp_path_factory.mktemp("stores")
    options = {"train": 0, "val": 12, "test": 0, "unseen": 0, "workers": 1}
    prepare("world", root / "with", {**options, "proposals": True}, command="x")
    prepare("world", root / "without", options, command="x")
    return {name: Store.open(root / name) for name in ("with", "without")}


def of(store: Store, built_in: LoadedModel, **options: Any) -> WeakGroundingEvaluation:
    return WeakGroundingEvaluation.of_model(
        [store], "val", built_in.tokenizer, built_in.info, **options
    )


def test_the_heat_of_a_trained_model_chooses_better_than_chance(
    stores: dict[str, Store], built_in: LoadedModel
) -> None:
    found = evaluate(of(stores["with"], built_in), built_in.model, CPU)
    assert found is not None
    scores = found.scores
    assert scores["phrases with proposals"].value == 1
    assert scores["best possible proposal"].value > 0.8, "pairs have no proposal"
    chance = scores["baseline: random proposal"].value
    assert chance == pytest.approx(scores["baseline: random object"].value)
    assert scores["accuracy@0.5"].value > 2 * chance
    assert {p["found_by"] for p in found.predictions} == {BY_PROPOSAL}
    for p in found.predictions:
        assert tuple(p["box_xyxy_px"]) in p["proposals_xyxy_px"]


def test_without_proposals_the_box_is_what_is_hot(
    stores: dict[str, Store], built_in: LoadedModel
) -> None:
    found = evaluate(of(stores["without"], built_in), built_in.model, CPU)
    assert found is not None
    assert found.scores["phrases with proposals"].value == 0
    assert "baseline: random proposal" not in found.scores
    assert {p["found_by"] for p in found.predictions} == {BY_MAP}
    assert found.scores["accuracy@0.5"].value > 0.25


def test_proposals_of_another_store_serve_by_picture(
    stores: dict[str, Store], built_in: LoadedModel
) -> None:
    own = evaluate(of(stores["with"], built_in), built_in.model, CPU)
    for options in (
        {"proposals": [stores["with"]]},
        {"scoring": ScoringSection(proposals=(str(stores["with"].place),))},
    ):
        of_others = evaluate(of(stores["without"], built_in, **options), built_in.model, CPU)
        assert own is not None
        assert of_others is not None
        assert of_others.scores == own.scores


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_ranks_ask_every_phrase_once(
    world_size: int, stores: dict[str, Store], built_in: LoadedModel
) -> None:
    evaluation, model = of(stores["with"], built_in), built_in.model.eval()

    def answers(rank: int, world_size: int) -> list[dict[str, Any]]:
        batches = evaluation.validation(rank, world_size)
        return [p for batch in batches for p in evaluation.predict(model, batch)]

    whole = answers(0, 1)
    parts = [p for rank in range(world_size) for p in answers(rank, world_size)]
    assert [p["id"] for p in parts] == [p["id"] for p in whole]
    assert evaluation.score(parts)["accuracy@0.5"] == evaluation.score(whole)["accuracy@0.5"]


def test_inference_mode_changes_no_answer_and_leaves_no_gradient(
    stores: dict[str, Store], built_in: LoadedModel
) -> None:
    evaluation, model = of(stores["with"], built_in, limit=2), built_in.model.eval()
    with torch.no_grad():
        plain = [p for b in evaluation.validation() for p in evaluation.predict(model, b)]
    with torch.inference_mode():
        inferred = [p for b in evaluation.validation() for p in evaluation.predict(model, b)]
    assert inferred == plain
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_layer_of_the_released_recipe_is_the_fourth_cross_layer() -> None:
    assert cam_layer(base()) == 9
    assert cam_layer(tiny()) == 3, "the last one where there are fewer"
    assert cam_layer(base(), 6) == 6
    for wrong in (5, 12):
        with pytest.raises(ConfigError, match="6 to 11"):
            cam_layer(base(), wrong)


def test_proposals_that_are_no_boxes_of_the_picture_are_left_out() -> None:
    boxes = [
        (-5, -5, 10, 10),
        (3, 3, 3, 9),
        (50, 50, 60, 60),
        (1, float("nan"), 5, 5),
        (1, 2, 3, 4),
    ]
    assert usable(np.array(boxes, dtype=float), 20, 20) == (
        (0, 0, 10, 10),
        (1, 0, 5, 5),
        (1, 2, 3, 4),
    )
    assert usable(np.zeros((0, 4)), 20, 20) == ()


def test_the_released_code_keeps_the_box_of_the_phrase_before() -> None:
    rows = [
        {"id": str(number), "box_xyxy_px": [number, 0, 9, 9], "proposal_score": score}
        for number, score in enumerate([0.0, 2.0, 0.0, -1.0, 1.0, None])
    ]
    boxes = [row["box_xyxy_px"] for row in with_the_box_before(rows)]
    one, four = [1, 0, 9, 9], [4, 0, 9, 9]
    assert boxes == [[0, 0, 0, 0], one, one, one, four, four]
    assert rows[2]["box_xyxy_px"] == [2, 0, 9, 9], "the predictions stay as they are"


OFFICIAL = ScoringSection(compat="official")


def test_without_a_score_above_0_a_phrase_is_missed_or_has_the_box_before(
    stores: dict[str, Store], built_in: LoadedModel
) -> None:
    ours = of(stores["with"], built_in, limit=3)
    found = evaluate(ours, built_in.model, CPU)
    assert found is not None
    rows = [dict(p) for p in found.predictions]
    for row in rows[1:]:
        row |= {"proposal_score": 0.0, "box_xyxy_px": row["target_xyxy_px"] or [0, 0, 1, 1]}
    n = sum(row["present"] for row in rows)
    with pytest.warns(
        EvaluationWarning, match=f"val: {n - 1} phrases without heat, counted as mis"
    ):
        scores = ours.score(rows)
    assert scores["accuracy@0.5"].value <= 1 / n, "the right box by chance is no answer"
    assert scores["phrases without heat"].value == (n - 1) / n
    official = of(stores["with"], built_in, limit=3, scoring=OFFICIAL)
    with pytest.warns(EvaluationWarning, match="the box of the phrase before counts"):
        before = official.score(rows)
    first = [{**row, "box_xyxy_px": rows[0]["box_xyxy_px"], "proposal_score": 1.0} for row in rows]
    assert before["accuracy@0.5"] == ours.score(first)["accuracy@0.5"]


@pytest.mark.parametrize("proposals", [((0.0, 0.0, 40.0, 30.0), (1.0, 1.0, 9.0, 9.0)), ()])
@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_map_without_heat_finds_nothing(
    proposals: tuple[BoxXYXY, ...],
    value: float,
    stores: dict[str, Store],
    built_in: LoadedModel,
    tmp_path: Path,
) -> None:
    """Neither the first proposal nor the whole picture, which here is the right box."""
    whole = (0.0, 0.0, 40.0, 30.0)
    item = WeakGroundingItem("1", "r", "x", "x", whole, 40, 30, proposals_xyxy_px=proposals)
    cold = _prediction(item, np.full((8, 8), value), 0.9)
    warm = _prediction(item, np.full((8, 8), 1.0), 0.9)
    assert (cold["found_by"], cold["box_xyxy_px"]) == ("no heat", [0, 0, 0, 0])
    assert (warm["found_by"], warm["box_xyxy_px"]) == (
        BY_PROPOSAL if proposals else BY_MAP,
        [*whole],
    )
    evaluation = of(stores["without"], built_in)
    assert evaluation.score([warm])["accuracy@0.5"].value == 1
    with pytest.warns(EvaluationWarning, match="val: 1 phrases without heat, counted as missed: 1"):
        scores = evaluation.score([cold])
    assert scores["accuracy@0.5"].value == scores["mean IoU"].value == 0
    assert scores["phrases without heat"].value == 1
    saved = tmp_path / "saved.jsonl"
    saved.write_text(json.dumps(cold))
    kind = WeakGroundingEvaluation
    (answer,) = read_answers(saved, kind.NO_ANSWER, kind.ALSO_SAID).values()
    with pytest.warns(EvaluationWarning, match="counted as missed"):
        assert evaluation.score([{**cold, **answer.fields}]) == scores


def test_pictures_without_proposals_are_counted_by_reason_and_said(
    stores: dict[str, Store], built_in: LoadedModel, tmp_path: Path
) -> None:
    store = stores["without"]
    records = [store[int(number)] for number in store.indices("val")]
    lines = [
        {"image": record.image, "boxes": [[-9, -9, -1, -1]] if number == 0 else [[0, 0, 9, 9]]}
        for number, record in enumerate(records[:-2])
    ]
    (tmp_path / "boxes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    evaluation = of(store, built_in)
    evaluation.index = ProposalIndex.of_file(tmp_path / "boxes.jsonl")
    with pytest.warns(EvaluationWarning) as said:
        found = evaluate(evaluation, built_in.model, CPU)
    assert found is not None
    n = {r.image: sum(p["image"] == r.image for p in found.predictions) for r in records}
    texts = [str(one.message) for one in said if "without heat" not in str(one.message)]
    two = [record.image for record in records[-2:]]
    assert texts == [
        f"val: {n[records[0].image]:,} phrases of {records[0].image}: no proposal that is a box in "
        "the picture, what is hot in the heat map answers",
        f"val: {n[two[0]] + n[two[1]]:,} phrases of {two[0]}, {two[1]}: no proposals, what is hot "
        "in the heat map answers",
    ]
    by_map = {p["image"] for p in found.predictions if p["found_by"] == BY_MAP}
    assert by_map <= {records[0].image, *two}
    share = found.scores["phrases with proposals"]
    present = Counter(p["image"] for p in found.predictions if p["present"])
    lost = present[records[0].image] + present[two[0]] + present[two[1]]
    assert share.value == pytest.approx(1 - lost / share.n)


def test_proposals_are_cut_to_the_picture_but_as_released(
    stores: dict[str, Store], built_in: LoadedModel, tmp_path: Path
) -> None:
    store = stores["without"]
    record = store[int(store.indices("val")[0])]
    width, height = record.width, record.height
    raw = [[0, 0, 2 * width, height], [5, 5, 5, 9], [1, 2, 30, 40]]
    (tmp_path / "b.jsonl").write_text(json.dumps({"image": record.image, "boxes": raw}))
    index = ProposalIndex.of_file(tmp_path / "b.jsonl")
    ours = of(store, built_in, limit=1)
    official = of(store, built_in, limit=1, scoring=OFFICIAL)
    ours.index = official.index = index
    cut = next(iter(ours.references()))["proposals_xyxy_px"]
    assert cut == ((0, 0, width, height), (1, 2, 30, 40))
    kept = next(iter(official.references()))["proposals_xyxy_px"]
    assert kept == tuple(map(tuple, raw))
    item = WeakGroundingItem("1", "r", "x", "x", None, width, height, proposals_xyxy_px=kept)
    flat = _prediction(item, np.full((8, 8), 1.0), 0.9)
    # heat of the picture over the root of the whole box's area, against 29 x 38 over its root
    scores = [width * height / np.sqrt(2 * width * height), np.sqrt(29 * 38)]
    assert flat["box_xyxy_px"] == raw[0 if scores[0] > scores[1] else 2]
    assert flat["proposal_score"] == pytest.approx(max(scores))


def test_as_released_phrases_are_asked_in_the_order_of_the_data(
    built_in: LoadedModel, tmp_path: Path
) -> None:
    """The box before is that of the expression before, whatever its picture."""
    made = [
        painted_record(tmp_path, name, [("red box", (0, 0, 9, 9))], split="val") for name in "ab"
    ]
    twins = [dataclasses.replace(one, id=f"{one.id}2") for one in made]
    store = painted_store(tmp_path / "store", tmp_path, [*made, *twins])
    orders = []
    for scoring in (None, OFFICIAL):
        evaluation = of(store, built_in, scoring=scoring)
        orders.append([item.record for batch in evaluation.validation() for item in batch.items])
    assert orders == [["a", "a2", "b", "b2"], ["a", "b", "a2", "b2"]]
