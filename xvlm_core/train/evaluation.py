"""Scoring a model on the validation data of its task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from xvlm_core.errors import XvlmError
from xvlm_core.tasks.base import Batch, Evaluation, InPasses, Prediction, Scores
from xvlm_core.train.devices import Precision, autocast
from xvlm_core.train.ranks import Ranks
from xvlm_core.train.state import random_state, set_random_state


@dataclass(frozen=True)
class Evaluated:
    """The scores, the items that could not be asked, by reason, and what they are made of."""

    scores: Scores
    dropped: dict[str, int]
    predictions: list[Prediction]


@dataclass(frozen=True)
class _Answers:
    """What a rank found out."""

    predictions: list[Prediction]
    dropped: Counter[str]
    stopped: bool


def evaluate(
    task: Evaluation,
    model: nn.Module,
    device: torch.device,
    precision: Precision = "fp32",
    *,
    ranks: Ranks | None = None,
    stop: Callable[[], bool] = lambda: False,
    beat: Callable[[str], None] = lambda where: None,
) -> Evaluated | None:
    """Predict every validation item once, and score.

    The ranks share the items out and rank 0 scores; the scores come to all. The model's mode and
    torch's random numbers are afterwards as before: training goes the same way however often it is
    evaluated.

    Args:
        task: brings the data, the predictions and the figures.
        model: on ``device``, whole on every rank.
        device: where batches go.
        precision: of the forward pass.
        ranks: the processes; None: this one alone.
        stop: asked before each batch.
        beat: told of each batch.

    Returns:
        The scores (none where there is no validation data) and what was dropped; None when stopped
        on any rank.

    Raises:
        XvlmError: what a rank raised.
    """
    ranks = ranks or Ranks()
    dropped: Counter[str] = Counter()
    batches: Iterator[Batch] | None = task.validation(ranks.rank, ranks.world_size)
    predictions: list[Prediction] = []
    while batches is not None:
        answers, error = None, None
        try:
            answers = _answer(task, model, batches, device, precision, stop, beat)
        except XvlmError as problem:
            error = problem
        ranks.raise_first(error)
        gathered = [found for found in ranks.agree(answers) if found is not None]
        if any(found.stopped for found in gathered):
            return None
        predictions = [prediction for found in gathered for prediction in found.predictions]
        ids = [prediction["id"] for prediction in predictions]
        assert len(set(ids)) == len(ids), "an id was predicted twice"
        dropped = sum((found.dropped for found in gathered), dropped)
        batches = None
        if isinstance(task, InPasses):
            batches = task.next_pass(predictions, ranks.rank, ranks.world_size)
    scores = ranks.main_does(lambda: task.score(predictions) if predictions else {})
    return Evaluated(scores, dict(dropped), predictions)


@torch.no_grad()
def _answer(
    task: Evaluation,
    model: nn.Module,
    batches: Iterator[Batch],
    device: torch.device,
    precision: Precision,
    stop: Callable[[], bool],
    beat: Callable[[str], None],
) -> _Answers:
    """To this rank's share of a pass."""
    random, training = random_state(), model.training
    model.eval()
    predictions: list[Prediction] = []
    dropped: Counter[str] = Counter()
    try:
        for batch in batches:
            if stop():
                return _Answers([], Counter(), stopped=True)
            beat(f"validation, records {', '.join(batch.record_ids[:4])}")
            dropped.update(batch.dropped)
            with autocast(device, precision):
                predictions += task.predict(model, batch.to(device))
    finally:
        model.train(training)
        set_random_state(random)
    return _Answers(predictions, dropped, stopped=False)
