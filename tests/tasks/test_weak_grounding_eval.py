"""Grounding without boxes is asked and scored as grounding with boxes is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from xvlm_core.config.schema import ScoringSection
from xvlm_core.data.store import Store
from xvlm_core.errors import ConfigError
from xvlm_core.inference.checkpoints import builtin_folder
from xvlm_core.inference.heatmap import cam_layer
from xvlm_core.inference.proposals import usable
from xvlm_core.models.sizes import base, tiny
from xvlm_core.sources.prepare import prepare
from xvlm_core.tasks.weak_grounding_eval import (
    BY_MAP,
    BY_PROPOSAL,
    WeakGroundingEvaluation,
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


def test_compat_official_is_a_matter_of_the_score_alone(
    stores: dict[str, Store], built_in: LoadedModel
) -> None:
    ours = of(stores["with"], built_in, limit=3)
    found = evaluate(ours, built_in.model, CPU)
    assert found is not None
    rows = [dict(p) for p in found.predictions]
    for row in rows[1:]:
        row["proposal_score"] = 0.0
    official = of(stores["with"], built_in, limit=3, compat_official=True)
    assert ours.score(rows)["accuracy@0.5"] == found.scores["accuracy@0.5"]
    assert official.score(rows)["accuracy@0.5"].value < found.scores["accuracy@0.5"].value
    assert ours.score(rows)["phrases without heat"].value > 0.9
