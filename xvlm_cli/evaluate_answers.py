"""Answers to an evaluation: of a model, on one process or several, or out of a file."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from xvlm_cli.evaluate_plan import Asked, Request
from xvlm_cli.evaluate_report import Answered
from xvlm_cli.output import Output
from xvlm_cli.progress import Progress
from xvlm_core.train.launch import Place

if TYPE_CHECKING:
    import torch

    from xvlm_core.inference.checkpoints import FoundModel
    from xvlm_core.tasks.evaluations import StoreEvaluation
    from xvlm_core.weights.folder import ModelInfo

_MEETING_SECONDS = 1800.0
"""What one of several processes waits for the others' answers."""


def _evaluation(
    asked: Asked, split: str, limit: int | None, info: ModelInfo, tokenizer: Any
) -> StoreEvaluation:
    from xvlm_core.tasks.evaluations import evaluation_class

    return evaluation_class(asked.task).of_model(
        asked.stores, split, tokenizer, info, scoring=asked.scoring, limit=limit
    )


def of_model(
    request: Request, asked: Asked, found: FoundModel, place: Place, out: Output
) -> dict[str, Answered]:
    """What a model answers to each split; on rank 0 of several processes all answers."""
    from xvlm_core.train.evaluation import evaluate as evaluate_split
    from xvlm_core.train.ranks import open_ranks
    from xvlm_core.weights.folder import load_model_folder

    device = _device(request.device, place)
    answered: dict[str, Answered] = {}
    progress = Progress(quiet=out.quiet)
    batches = 0

    def beat(where: str) -> None:
        nonlocal batches
        batches += 1
        progress(batches, None, f"batches; {where}")

    with open_ranks(place, device, _MEETING_SECONDS) as ranks:
        loaded = ranks.together(partial(load_model_folder, found.folder))
        loaded.model.to(device)
        info, tokenizer = loaded.info, loaded.tokenizer
        for split in asked.all_splits:
            evaluation = ranks.together(
                partial(_evaluation, asked, split, request.limit, info, tokenizer)
            )
            done = evaluate_split(evaluation, loaded.model, device, ranks=ranks, beat=beat)
            assert done is not None, "nothing stops it"
            answered[split] = Answered(done.scores, done.dropped, done.predictions)
    progress.close()
    return answered


def _device(name: str, place: Place) -> torch.device:
    from xvlm_core.errors import MissingToolError, UsageError
    from xvlm_core.train.devices import pick_device

    try:
        return pick_device(name, place)  # type: ignore[arg-type]
    except MissingToolError as error:
        raise UsageError(f"--device {name}: {error.what}", try_="--device cpu") from None


def named_model(request: Request, asked: Asked) -> ModelInfo | None:
    """The model that saved predictions are said to be of."""
    if request.checkpoint is None:
        return None
    from xvlm_core.inference.checkpoints import find_checkpoint
    from xvlm_core.weights.folder import read_info

    found = find_checkpoint(request.checkpoint, asked.task, os.environ, download=request.download)
    return read_info(found.folder)


def of_file(request: Request, asked: Asked, info: ModelInfo | None) -> dict[str, Answered]:
    """What a file answers to each split."""
    from xvlm_core.data.tokenizer import Tokenizer
    from xvlm_core.tasks.evaluations import evaluation_class
    from xvlm_core.tasks.saved_predictions import join, read_answers

    assert request.predictions is not None
    kind = evaluation_class(asked.task)
    answers = read_answers(request.predictions, kind.NO_ANSWER, getattr(kind, "ALSO_SAID", ()))
    tokenizer = Tokenizer.bert_base_uncased()
    evaluations = {
        split: _evaluation(asked, split, request.limit, info or _any_model(asked), tokenizer)
        for split in asked.all_splits
    }
    joined = join(
        request.predictions,
        answers,
        [evaluation.references() for evaluation in evaluations.values()],
        kind.NO_ANSWER,
        allow_missing=request.allow_missing,
    )
    missing = set(joined.missing)
    return {
        split: Answered(
            evaluation.score(rows) if rows else {},
            dict(evaluation.dropped),
            rows,
            [row["id"] for row in rows if row["id"] in missing],
        )
        for (split, evaluation), rows in zip(evaluations.items(), joined.predictions, strict=True)
    }


def _any_model(asked: Asked) -> ModelInfo:
    """How texts are read where it is not known by which model: which items there are, and their
    ids, are the same for all.
    """
    from xvlm_core.config.schema import ModelSection
    from xvlm_core.weights.folder import ModelInfo

    recipe = asked.recipe
    section = ModelSection() if recipe is None else recipe.model
    return ModelInfo(
        task=asked.task,
        max_words=30 if recipe is None else recipe.text.max_words,
        max_tokens=40 if recipe is None else recipe.text.max_tokens,
        config=section.shape(),
    )
