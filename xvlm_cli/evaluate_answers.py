"""Answers to an evaluation: of a model, on one process or several, or out of a file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
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
    from xvlm_core.tasks.saved_predictions import SavedAnswer
    from xvlm_core.tasks.store_evaluation import StoreEvaluation
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


def _evaluations(asked: Asked, limit: int | None, found: FoundModel) -> dict[str, StoreEvaluation]:
    """Of each split, as the model wants them: its weights are not needed for that."""
    from xvlm_core.weights.folder import read_info, read_tokenizer

    info = read_info(found.folder)
    tokenizer = read_tokenizer(found.folder, info)
    return {split: _evaluation(asked, split, limit, info, tokenizer) for split in asked.all_splits}


def of_model(
    request: Request, asked: Asked, found: FoundModel, place: Place, out: Output
) -> dict[str, Answered]:
    """What a model answers to each split; on rank 0 of several processes all answers.

    What can be wrong with the data or the scoring is found out before the weights are read.
    """
    from xvlm_core.train.evaluation import evaluate as evaluate_split
    from xvlm_core.train.ranks import open_ranks
    from xvlm_core.weights.folder import load_model_folder

    device = device_of(request.device, place)
    answered: dict[str, Answered] = {}
    progress = Progress(quiet=out.quiet)
    batches = 0

    def beat(where: str) -> None:
        nonlocal batches
        batches += 1
        progress(batches, None, f"batches; {where}")

    with open_ranks(place, device, _MEETING_SECONDS) as ranks:
        evaluations = ranks.together(partial(_evaluations, asked, request.limit, found))
        loaded = ranks.together(partial(load_model_folder, found.folder))
        loaded.model.to(device)
        for split, evaluation in evaluations.items():
            done = evaluate_split(evaluation, loaded.model, device, ranks=ranks, beat=beat)
            assert done is not None, "nothing stops it"
            answered[split] = Answered(
                done.scores, done.dropped, done.predictions, examples=done.examples
            )
    progress.close()
    return answered


def with_extra_scores(
    request: Request, asked: Asked, answered: Mapping[str, Answered], out: Output
) -> dict[str, Answered]:
    """The same answers with the scores that are taken only here, where the task has such ones.

    Predictions are on disk before: these may take minutes, and may be interrupted.
    """
    from xvlm_core.tasks.evaluations import evaluation_class

    kind: Any = evaluation_class(asked.task)
    if not request.java or not hasattr(kind, "extra_scores"):
        return dict(answered)
    more = {}
    for split, found in answered.items():
        more[split] = found
        if split in asked.splits and found.scores:
            out.note(f"{split}: {kind.EXTRA}")
            extra = kind.extra_scores(found.predictions, split)
            more[split] = dataclasses.replace(
                found, scores={**found.scores, **extra.scores}, skipped=extra.skipped
            )
    return more


def device_of(name: str, place: Place) -> torch.device:
    """The device that was asked for.

    Raises:
        UsageError: it is not there.
    """
    from xvlm_core.errors import MissingToolError, UsageError
    from xvlm_core.train.devices import pick_device

    try:
        return pick_device(name, place)  # type: ignore[arg-type]
    except MissingToolError as error:
        raise UsageError(f"--device {name}: {error.what}", try_="--device cpu") from None


def named_model(request: Request, asked: Asked) -> FoundModel | None:
    """The model that saved predictions are said to be of."""
    if request.checkpoint is None:
        return None
    from xvlm_core.inference.checkpoints import find_checkpoint

    return find_checkpoint(request.checkpoint, asked.task, os.environ, download=request.download)


def saved(request: Request, asked: Asked) -> dict[str, SavedAnswer]:
    """The answers of a file, by id."""
    from xvlm_core.tasks.evaluations import evaluation_class
    from xvlm_core.tasks.saved_predictions import read_answers

    assert request.predictions is not None
    kind = evaluation_class(asked.task)
    return read_answers(request.predictions, kind.NO_ANSWER, getattr(kind, "ALSO_SAID", ()))


def of_file(
    request: Request, asked: Asked, answers: Mapping[str, SavedAnswer], info: ModelInfo | None
) -> dict[str, Answered]:
    """What the answers of a file are to each split."""
    from xvlm_core.tasks.evaluations import evaluation_class
    from xvlm_core.tasks.saved_predictions import join
    from xvlm_core.train.evaluation import by_reason

    assert request.predictions is not None
    kind = evaluation_class(asked.task)
    evaluations = _without_model(request, asked, info)
    joined = join(
        request.predictions,
        answers,
        [evaluation.references() for evaluation in evaluations.values()],
        kind.NO_ANSWER,
        allow_missing=request.allow_missing,
        left_out=[evaluation.left_out for evaluation in evaluations.values()],
    )
    missing = set(joined.missing)
    return {
        split: Answered(
            evaluation.score(rows) if rows else {},
            dict(evaluation.dropped),
            rows,
            [row["id"] for row in rows if row["id"] in missing],
            by_reason(evaluation.examples, evaluation.dropped),
        )
        for (split, evaluation), rows in zip(evaluations.items(), joined.predictions, strict=True)
    }


def _without_model(
    request: Request, asked: Asked, info: ModelInfo | None
) -> dict[str, StoreEvaluation]:
    """Which items there are, of each split; their ids are the same for all models."""
    from xvlm_core.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.bert_base_uncased()
    return {
        split: _evaluation(asked, split, request.limit, info or _any_model(asked), tokenizer)
        for split in asked.all_splits
    }


_ITEMS = {
    "grounding": "expressions",
    "weak_grounding": "expressions",
    "retrieval": "texts",
    "vqa": "questions",
}
"""What is asked of a picture."""


def planned(request: Request, asked: Asked, info: ModelInfo | None) -> dict[str, dict[str, int]]:
    """What will be asked, by split, each kind by its name; no picture is opened.

    Args:
        request: with the limit, which is one of records: of pictures, or of pairs of them.
        asked: what it comes to.
        info: of the model that will answer; None: not known.
    """
    from xvlm_cli.evaluate_plan import records_of
    from xvlm_core.tasks.evaluations import evaluation_class

    of_pairs = evaluation_class(asked.task).of_pairs
    counts = {}
    for split, evaluation in _without_model(request, asked, info).items():
        items = list(evaluation.references())
        if of_pairs:
            counts[split] = {"pairs": len(items)}
            continue
        pictures = sum(records_of(asked, split))
        pictures = pictures if request.limit is None else min(pictures, request.limit)
        if asked.task == "retrieval":  # pictures are items, too
            pictures = sum(item["text"] is None for item in items)
            items = [item for item in items if item["text"] is not None]
        counts[split] = {"pictures": pictures, _ITEMS.get(asked.task, "items"): len(items)}
    return counts


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
