"""Scoring a model on the validation data of its task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from xvlm_core.errors import XvlmError
from xvlm_core.tasks.base import Batch, Evaluation, InPasses, Prediction, Scores
from xvlm_core.train.devices import Precision, autocast
from xvlm_core.train.ranks import Ranks
from xvlm_core.train.state import random_state, set_random_state

MOST_EXAMPLES = 3
"""Items left out that are named, of each reason."""


@dataclass(frozen=True)
class Evaluated:
    """What came out.

    Attributes:
        scores: by name.
        dropped: items that could not be asked, by reason.
        predictions: what the scores are made of.
        examples: the names of some of the dropped, by reason, at most :data:`MOST_EXAMPLES` each.
    """

    scores: Scores
    dropped: dict[str, int]
    predictions: list[Prediction]
    examples: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Answers:
    """What a rank found out."""

    predictions: list[Prediction]
    dropped: Counter[str]
    stopped: bool
    examples: tuple[str, ...] = ()


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
    try:
        found = _evaluate(task, model, device, precision, ranks, stop, beat)
    except BaseException:
        _give_up(task, ranks)
        raise
    if found is None:
        _give_up(task, ranks)
    return found


def _give_up(task: Evaluation, ranks: Ranks) -> None:
    """What is held between the passes (the patches of thousands of pictures) is let go."""
    if isinstance(task, InPasses):
        task.next_pass([], ranks.rank, ranks.world_size)


def _evaluate(
    task: Evaluation,
    model: nn.Module,
    device: torch.device,
    precision: Precision,
    ranks: Ranks,
    stop: Callable[[], bool],
    beat: Callable[[str], None],
) -> Evaluated | None:
    dropped: Counter[str] = Counter()
    named: dict[str, None] = {}
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
        named |= dict.fromkeys(line for found in gathered for line in found.examples)
        batches = None
        if isinstance(task, InPasses):
            batches = task.next_pass(predictions, ranks.rank, ranks.world_size)
    scores = ranks.main_does(lambda: task.score(predictions) if predictions else {})
    return Evaluated(scores, dict(dropped), predictions, by_reason(named, dropped))


def by_reason(lines: Iterable[str], dropped: Mapping[str, int]) -> dict[str, list[str]]:
    """Names of what was left out.

    Args:
        lines: ``NAME: REASON``, as an evaluation's ``examples`` are.
        dropped: by reason: says what the reasons are (a name may hold a colon too).

    Returns:
        By reason, at most :data:`MOST_EXAMPLES` names each, in their order.
    """
    out: dict[str, list[str]] = {}
    for line in lines:
        fitting = [reason for reason in dropped if line.endswith(f": {reason}")]
        if not fitting:
            continue
        reason = max(fitting, key=len)
        names = out.setdefault(reason, [])
        if len(names) < MOST_EXAMPLES:
            names.append(line.removesuffix(f": {reason}"))
    return out


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
    examples = tuple(getattr(task, "examples", ()))
    return _Answers(predictions, dropped, stopped=False, examples=examples)
