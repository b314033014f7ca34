"""A probability is a yes or a no by one rule, wherever it is drawn, said or scored."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xvlm_cli import predict_grounding
from xvlm_core.decision import PROBABLE, is_probable
from xvlm_core.inference.checkpoints import FoundModel
from xvlm_core.inference.draw import annotate
from xvlm_core.inference.pair_judge import Judgement
from xvlm_core.inference.predictor import Grounding
from xvlm_core.tasks import nlvr2_eval
from xvlm_core.tasks.grounding_scores import score

BELOW = math.nextafter(PROBABLE, 0)
BOX = (10.0, 10.0, 90.0, 90.0)


def is_drawn_as_there(probability: float) -> bool:
    one = annotate(Image.new("RGB", (400, 400)), [Grounding("x", BOX, probability, BOX, "x")])
    sure = annotate(Image.new("RGB", (400, 400)), [Grounding("x", BOX, 0.5004, BOX, "x")])
    return np.array_equal(np.asarray(one), np.asarray(sure))


def is_said_to_be_there(probability: float, tmp_path: object) -> bool:
    row = Grounding("x", BOX, probability, BOX, "x").to_json()
    found = FoundModel(folder=tmp_path, origin="")  # type: ignore[arg-type]
    lines = predict_grounding._lines([{"image": "a.png", "groundings": [row]}], found, 3)
    return not any("probably not there" in line for line in lines)


def is_a_false_alarm(probability: float) -> bool:
    common: dict[str, Any] = {
        "record": "r",
        "phrase": "x",
        "like": None,
        "width": 100,
        "height": 100,
    }
    common |= {"objects_xyxy_px": (), "other_targets_xyxy_px": (), "box_xyxy_px": BOX}
    there = {"id": "1", "kind": "x", "present": True, "target_xyxy_px": BOX, "probability": 1.0}
    absent = {"id": "2", "kind": "y", "present": False, "target_xyxy_px": None}
    scores = score([common | there, common | absent | {"probability": probability}], "val")
    return scores["false alarms [y]"].value == 1


@pytest.mark.parametrize(("probability", "yes"), [(0.5, True), (BELOW, False)])
def test_a_half_is_a_yes_everywhere(probability: float, yes: bool, tmp_path: object) -> None:
    assert is_probable(probability) == yes
    assert is_drawn_as_there(probability) == yes
    assert is_said_to_be_there(probability, tmp_path) == yes
    assert is_a_false_alarm(probability) == yes
    assert Judgement("x", probability, "x").is_true == yes
    assert nlvr2_eval._is_right({"probability": probability, "label": True}) == yes
