"""What ``xvlm evaluate`` is asked for: which evaluation, of which records, by which answers."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xvlm_cli.model_request import ModelRequest
from xvlm_core.config.recipes import (
    looks_like_path,
    nearest_names,
    recipe_names,
)
from xvlm_core.config.resolve import resolve
from xvlm_core.config.schema import Recipe, ScoringSection
from xvlm_core.data.block_cache import CacheSettings
from xvlm_core.data.files import as_place, store_place
from xvlm_core.errors import DataError, UsageError
from xvlm_core.tasks.evaluations import EVALUATED, evaluation_class

if TYPE_CHECKING:
    from xvlm_core.data.store import Store

ALL = "all"
"""In place of splits: all but the one that is trained on."""


@dataclass(frozen=True)
class Request(ModelRequest):
    """What was typed to evaluate."""

    data: str | None
    splits: str | None
    predictions: Path | None
    allow_missing: bool
    calibrate_on: str | None
    limit: int | None
    server_file: bool = False
    java: bool = True


@dataclass(frozen=True)
class Asked:
    """What a request comes to.

    Attributes:
        task: whose evaluation.
        recipe: that named it, if one did.
        places: of the stores.
        stores: of the records.
        splits: that are scored.
        calibrate_on: split that a temperature is fitted on, if any.
        scoring: how answers are found.
        scored_as: the recipe that ``scoring`` is of where none was named; None: it is what the
            recipe says, or the default.
    """

    task: str
    recipe: Recipe | None
    places: tuple[Path | str, ...]
    stores: tuple[Store, ...]
    splits: tuple[str, ...]
    calibrate_on: str | None
    scoring: ScoringSection
    scored_as: str | None = None

    @property
    def all_splits(self) -> tuple[str, ...]:
        """Those that are scored, then that of the temperature."""
        return (*self.splits, *([self.calibrate_on] if self.calibrate_on else []))

    @property
    def data(self) -> str:
        """The stores, for people."""
        return ", ".join(map(str, self.places))

    @property
    def proposals(self) -> tuple[str, ...]:
        """Names of the stores that boxes are chosen from."""
        places = self.scoring.proposals
        return tuple(re.split(r"[/\\]", place.rstrip("/"))[-1] for place in places)

    def file_name(self, split: str, limit: int | None) -> str:
        """Of the predictions of a split: other data or another scoring, another name."""
        stores = "_".join(store.name for store in self.stores)
        first = [] if limit is None else [f"first{limit}"]
        parts = [self.task, stores, split, *self._scored(), *first]
        return re.sub(r"[^\w.+-]", "_", "-".join(parts)) + ".jsonl"

    def _scored(self) -> list[str]:
        """What of the scoring makes other answers than the default does."""
        scoring, said = self.scoring, []
        if self.task == "retrieval" and scoring.candidates != ScoringSection().candidates:
            said.append(f"candidates{scoring.candidates}")
        if self.task == "weak_grounding":
            said += [] if scoring.cam_layer is None else [f"layer{scoring.cam_layer}"]
            said += [] if scoring.compat is None else [f"compat_{scoring.compat}"]
            said += self.proposals
        if self.task == "vqa" and scoring.scheme != "auto":
            said.append(scoring.scheme)
        return said


def asked(request: Request) -> Asked:
    """Look everything up that can be known without a model.

    Raises:
        UsageError: no such task, no data, splits that exclude each other, or a temperature that
            would be fitted on what was trained on.
        ConfigError: the recipe does not hold.
        DataError: a store is missing or damaged, or has no record of a split.
    """
    from xvlm_core.data.store import Store

    task, recipe = _task_and_recipe(request)
    trained_on = "train" if recipe is None else recipe.data.train_split
    require_calibration(task, request.calibrate_on, trained_on)
    cache = None if recipe is None else CacheSettings.of(recipe.data)
    if request.data is not None:
        places: tuple[Path | str, ...] = (as_place(request.data),)
    else:
        assert recipe is not None
        data = recipe.data
        places = tuple(store_place(data.root, name) for name in data.validation)
        if not places:
            raise UsageError(f"{request.task} validates on no store", try_="--data STORE")
    stores = tuple(Store.open(place, cache) for place in places)
    splits = _splits(request.splits, trained_on, recipe, stores)
    if request.calibrate_on in splits:
        raise UsageError(
            f"--calibrate-on {request.calibrate_on} is a split that is scored: its figures would "
            "flatter",
            where="--split " + ",".join(splits),
            try_="--calibrate-on val --split test",
        )
    scoring, scored_as = _scoring(task, recipe, stores)
    found = Asked(task, recipe, places, stores, splits, request.calibrate_on, scoring, scored_as)
    for split in found.all_splits:
        _require_records(found, split)
    if task == "weak_grounding":
        for place in scoring.proposals:
            Store.open(as_place(place))  # a missing one is said before a model is looked for
    return found


def require_calibration(task: str, split: str | None, trained_on: str) -> None:
    """A temperature can be fitted, and on a split that the model has not learnt from.

    Args:
        task: whose evaluation.
        split: that it is to be fitted on, if any.
        trained_on: the split that was trained on.

    Raises:
        UsageError: it cannot.
    """
    if split is None:
        return
    if not hasattr(evaluation_class(task), "presence"):
        raise UsageError(
            f"{task} has no probability that something is there: nothing to calibrate",
            try_="leave --calibrate-on out",
        )
    if split == trained_on:
        raise UsageError(
            f"--calibrate-on {split} is the split that is trained on: a model is surer of what it "
            "has learnt than of anything else, and the temperature would not fit other data",
            try_="--calibrate-on val --split test",
        )


def _task_and_recipe(request: Request) -> tuple[str, Recipe | None]:
    """A task by its name, or a recipe of fine-tuning and its task.

    A recipe that has the name of a task (nlvr2) says what the task's data are.
    """
    name, known, tasks = request.task, recipe_names("finetune"), EVALUATED
    is_recipe = name in known or f"finetune/{name}" in known or looks_like_path(name)
    if not is_recipe and name not in tasks:
        near = [full.partition("/")[2] for full in nearest_names(name, "finetune")]
        raise UsageError(
            f"no task {name!r}; there are {', '.join(tasks)}, and the recipes "
            + ", ".join(full.partition("/")[2] for full in known),
            try_=f"xvlm evaluate {near[0] if near else tasks[0]}",
        )
    if is_recipe:
        recipe = resolve(name, request.words, environ=os.environ, kind="finetune").recipe
        if recipe.task not in tasks:
            raise UsageError(
                f"recipe {name} is for {recipe.task}, not for a task that is evaluated",
                try_=f"xvlm evaluate {tasks[0]} --data STORE",
            )
        return recipe.task, recipe
    if request.words:
        raise UsageError(
            f"{request.words[0]}: {name} is a task, only a recipe has values",
            try_="xvlm ls recipes",
        )
    if request.data is None:
        raise UsageError("which data?", try_=f"xvlm evaluate {name} --data STORE --split val")
    return name, None


def _splits(
    typed: str | None, trained_on: str, recipe: Recipe | None, stores: Sequence[Store]
) -> tuple[str, ...]:
    if typed is None:
        return ("val" if recipe is None else recipe.data.validation_split,)
    if typed == ALL:
        there = dict.fromkeys(
            name for store in stores for name, n in store.manifest.splits.items() if n
        )
        found = tuple(name for name in there if name != trained_on)
        if not found:
            raise DataError(
                f"{stores[0].place} has no split beside {trained_on!r}",
                where=str(stores[0].place),
                try_=f"--split {trained_on}",
            )
        return found
    named = tuple(dict.fromkeys(name.strip() for name in typed.split(",") if name.strip()))
    if not named:
        raise UsageError("--split names no split", try_="--split val,testA,testB, or --split all")
    return named


def _scoring(
    task: str, recipe: Recipe | None, stores: Sequence[Store]
) -> tuple[ScoringSection, str | None]:
    """How answers are found, stores of boxes by their places; and whose recipe says so.

    Without a recipe, texts and pictures of a data set of the paper are ranked as the recipe of that
    data set does it: the released code looks at 256 candidates of COCO, at 128 of Flickr30K.
    """
    if recipe is not None:
        names = recipe.scoring.proposals
        places = tuple(str(store_place(recipe.data.root, name)) for name in names)
        return recipe.scoring.model_copy(update={"proposals": places}), None
    if task == "retrieval" and len(stores) == 1:
        from xvlm_core.metrics.paper import dataset_of

        (store,) = stores
        dataset = dataset_of(store.name, store.manifest.source, store.manifest.command)
        for name in recipe_names("finetune") if dataset is not None else ():
            of_it = resolve(name, (), environ={}, kind="finetune").recipe
            if of_it.task == task and of_it.data.validation == (dataset,):
                return ScoringSection(candidates=of_it.scoring.candidates), name
    return ScoringSection(), None


def _require_records(found: Asked, split: str) -> None:
    if any(records_of(found, split)):
        return
    there = dict.fromkeys(
        name for store in found.stores for name, n in store.manifest.splits.items() if n
    )
    what = "record"
    if split in there:
        what = "pair of pictures" if evaluation_class(found.task).of_pairs else "single picture"
        del there[split]
    raise DataError(
        f"{found.data} has no {what} of split {split!r}",
        where=str(found.places[0]),
        try_=f"--split {' or '.join(there)}" if there else "xvlm ls stores",
    )


def records_of(found: Asked, split: str) -> list[int]:
    """Records of a split that the task can be asked about, by store: pictures, or pairs of them."""
    from xvlm_core.data.record_kinds import numbers_of

    pairs = evaluation_class(found.task).of_pairs
    return [len(numbers_of(store, split, pairs=pairs)) for store in found.stores]
