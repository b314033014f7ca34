"""What ``xvlm evaluate`` is asked for: which evaluation, of which records, by which answers."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xvlm_core.config.recipes import (
    kind_of_task,
    looks_like_path,
    nearest_names,
    recipe_names,
)
from xvlm_core.config.resolve import resolve
from xvlm_core.config.schema import Recipe, ScoringSection
from xvlm_core.data.block_cache import CacheSettings
from xvlm_core.data.files import as_place, store_place
from xvlm_core.errors import DataError, UsageError

if TYPE_CHECKING:
    from xvlm_core.data.store import Store
    from xvlm_core.inference.checkpoints import FoundModel

ALL = "all"
"""In place of splits: all but the one that is trained on."""


@dataclass(frozen=True)
class Request:
    """What was typed."""

    task: str
    words: tuple[str, ...]
    checkpoint: str | None
    data: str | None
    splits: str | None
    predictions: Path | None
    allow_missing: bool
    calibrate_on: str | None
    limit: int | None
    output: Path | None
    no_files: bool
    download: bool
    device: str
    overwrite: bool
    dry_run: bool


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
    """

    task: str
    recipe: Recipe | None
    places: tuple[Path | str, ...]
    stores: tuple[Store, ...]
    splits: tuple[str, ...]
    calibrate_on: str | None
    scoring: ScoringSection

    @property
    def all_splits(self) -> tuple[str, ...]:
        """Those that are scored, then that of the temperature."""
        return (*self.splits, *([self.calibrate_on] if self.calibrate_on else []))

    @property
    def data(self) -> str:
        """The stores, for people."""
        return ", ".join(map(str, self.places))

    def file_name(self, split: str, limit: int | None) -> str:
        """Of the predictions of a split."""
        stores = "_".join(store.name for store in self.stores)
        first = "" if limit is None else f"-first{limit}"
        return re.sub(r"[^\w.+-]", "_", f"{self.task}-{stores}-{split}{first}") + ".jsonl"


def asked(request: Request) -> Asked:
    """Look everything up that can be known without a model.

    Raises:
        UsageError: no such task, no data, or splits that exclude each other.
        ConfigError: the recipe does not hold.
        DataError: a store is missing or damaged, or has no record of a split.
    """
    from xvlm_core.data.store import Store

    task, recipe = _task_and_recipe(request)
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
    splits = _splits(request.splits, recipe, stores)
    if request.calibrate_on in splits:
        raise UsageError(
            f"--calibrate-on {request.calibrate_on} is a split that is scored: its figures would "
            "flatter",
            where="--split " + ",".join(splits),
            try_="--calibrate-on val --split test",
        )
    found = Asked(task, recipe, places, stores, splits, request.calibrate_on, _scoring(recipe))
    for split in found.all_splits:
        _require_records(stores, places, split)
    return found


def _task_and_recipe(request: Request) -> tuple[str, Recipe | None]:
    """A task by its name, or a recipe of fine-tuning and its task.

    A recipe that has the name of a task (nlvr2) says what the task's data are.
    """
    from xvlm_core.tasks.registry import TASKS

    name, known = request.task, recipe_names("finetune")
    tasks = [task for task in TASKS if kind_of_task(task) == "finetune"]
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


def _splits(typed: str | None, recipe: Recipe | None, stores: Sequence[Store]) -> tuple[str, ...]:
    trained_on = "train" if recipe is None else recipe.data.train_split
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


def _scoring(recipe: Recipe | None) -> ScoringSection:
    """How answers are found, stores of boxes by their places."""
    if recipe is None:
        return ScoringSection()
    places = tuple(str(store_place(recipe.data.root, name)) for name in recipe.scoring.proposals)
    return recipe.scoring.model_copy(update={"proposals": places})


def _require_records(stores: Sequence[Store], places: Sequence[Path | str], split: str) -> None:
    if any(len(store.indices(split)) for store in stores):
        return
    there = dict.fromkeys(
        name for store in stores for name, n in store.manifest.splits.items() if n
    )
    raise DataError(
        f"{', '.join(map(str, places))} has no record of split {split!r}",
        where=str(places[0]),
        try_=f"--split {' or '.join(there)}" if there else "xvlm ls stores",
    )


def records_of(found: Asked, limit: int | None) -> dict[str, int]:
    """Records of each split that will be asked about."""
    counts = {}
    for split in found.all_splits:
        n = sum(len(store.indices(split)) for store in found.stores)
        counts[split] = n if limit is None else min(n, limit)
    return counts


@dataclass(frozen=True)
class PredictionFiles:
    """Where the predictions of each split go.

    Attributes:
        paths: by split; empty: nowhere.
        else_in: folder that serves if the first cannot be written; None: there is no other.
    """

    paths: dict[str, Path]
    else_in: Path | None = None

    def elsewhere(self) -> PredictionFiles:
        """The same names in the other folder."""
        assert self.else_in is not None
        moved = {split: self.else_in / path.name for split, path in self.paths.items()}
        return dataclasses.replace(self, paths=moved, else_in=None)


FOLDER = "evaluations"


def prediction_files(request: Request, found: Asked, model: FoundModel | None) -> PredictionFiles:
    """Where predictions are written: as typed, else beside the model that made them, else here.

    Raises:
        OutputError: what was named is there already; or one file is named for several splits.
    """
    from xvlm_core.errors import OutputError

    names = {split: found.file_name(split, request.limit) for split in found.all_splits}
    if request.no_files or model is None:
        return PredictionFiles({})
    if request.output is None:
        root, here = _folder_of(model), Path(FOLDER)
        if root is None:
            return PredictionFiles({split: here / name for split, name in names.items()})
        return PredictionFiles({s: root / FOLDER / name for s, name in names.items()}, here)
    output = request.output
    if len(names) > 1:
        if output.suffix == ".jsonl" or output.is_file():
            raise OutputError(
                f"{output} is one file, and {len(names)} splits are asked for: " + ", ".join(names),
                try_=f"-o {output.with_suffix('')}  (a folder)",
            )
        paths = {split: output / name for split, name in names.items()}
    else:
        is_folder = output.is_dir()
        paths = {split: output / name if is_folder else output for split, name in names.items()}
    there = [path for path in paths.values() if path.exists()]
    if there and not request.overwrite:
        raise OutputError(f"{there[0]} exists", try_="another -o, or --overwrite")
    return PredictionFiles(paths)


def _folder_of(model: FoundModel) -> Path | None:
    """The run or the folder of a model that is the user's own; None: it is not."""
    from xvlm_core.weights import hub

    if model.builtin or hub.place_of_cached(model.folder) is not None:
        return None
    for folder in (model.folder, *list(model.folder.parents)[:2]):
        if (folder / "run.json").is_file():
            return folder
    return model.folder
