"""Scoring a model on the validation data of its task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from xvlm_core.tasks.base import Prediction, Scores, Task
from xvlm_core.train.engines.torch import Precision, autocast
from xvlm_core.train.state import random_state, set_random_state


@dataclass(frozen=True)
class Evaluated:
    """The scores, and the items that could not be asked, by reason."""

    scores: Scores
    dropped: dict[str, int]


@torch.no_grad()
def evaluate(
    task: Task,
    model: nn.Module,
    device: torch.device,
    precision: Precision = "fp32",
    *,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluated | None:
    """Predict every validation item once, and score.

    The model's mode and torch's random numbers are afterwards as before: training goes the same
    way however often it is evaluated.

    Args:
        task: brings the data, the predictions and the figures.
        model: on ``device``.
        device: where batches go.
        precision: of the forward pass.
        stop: asked before each batch.

    Returns:
        The scores (none where there is no validation data) and what was dropped; None when stopped.
    """
    random, training = random_state(), model.training
    model.eval()
    predictions: list[Prediction] = []
    dropped: Counter[str] = Counter()
    try:
        for batch in task.validation():
            if stop():
                return None
            dropped.update(batch.dropped)
            with autocast(device, precision):
                predictions += task.predict(model, batch.to(device))
    finally:
        model.train(training)
        set_random_state(random)
    ids = [prediction["id"] for prediction in predictions]
    assert len(set(ids)) == len(ids), "an id was predicted twice"
    return Evaluated(task.score(predictions) if predictions else {}, dict(dropped))
