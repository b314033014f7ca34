"""Scoring a model on the validation data of its task."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from xvlm_core.tasks.base import Prediction, Scores, Task
from xvlm_core.train.engines.torch import Precision, autocast
from xvlm_core.train.state import random_state, set_random_state


@torch.no_grad()
def evaluate(
    task: Task,
    model: nn.Module,
    device: torch.device,
    precision: Precision = "fp32",
    *,
    stop: Callable[[], bool] = lambda: False,
) -> Scores | None:
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
        The scores (empty where there is no validation data); None when stopped.
    """
    random, training = random_state(), model.training
    model.eval()
    predictions: list[Prediction] = []
    try:
        for batch in task.validation():
            if stop():
                return None
            with autocast(device, precision):
                predictions += task.predict(model, batch.to(device))
    finally:
        model.train(training)
        set_random_state(random)
    ids = [prediction["id"] for prediction in predictions]
    assert len(set(ids)) == len(ids), "an id was predicted twice"
    return task.score(predictions) if predictions else {}
