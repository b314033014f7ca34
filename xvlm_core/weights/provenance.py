"""Who made a model: ``provenance.json`` beside its ``config.json``. Imports no torch.

Written into each checkpoint by the run that makes it, kept by ``xvlm cp``. A folder without it
is as good a model; one whose file is damaged is an error, not a folder without.
"""

from __future__ import annotations

import functools
import json
import math
import re
import warnings
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xvlm_core.data.manifest import sha256_file
from xvlm_core.errors import CheckpointError
from xvlm_core.train.checkpoint import MANIFEST, step_of
from xvlm_core.train.files import json_bytes, write_atomically
from xvlm_core.weights.folder import WEIGHTS
from xvlm_core.weights.hub import place_of_cached

if TYPE_CHECKING:
    from xvlm_core.train.runs import RunInfo

PROVENANCE = "provenance.json"
START = "started_from.json"
SCHEMA_VERSION = 1
_STEP = re.compile(r"step-\d{8,}")


class ProvenanceWarning(UserWarning):
    """What was known of the model that a run starts from cannot be read, and is left out."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ScoreRecord(_Record):
    """One figure and what it means (see :class:`xvlm_core.tasks.base.Score`).

    ``value`` is None where the figure was not finite.
    """

    value: float | None
    split: str = ""
    convention: str = ""
    n: int = 0
    reference: str | None = None


class Start(_Record):
    """The model that the first weights came from.

    Attributes:
        place: its folder or file, or ``hub:owner/name@commit``.
        weights_sha256: SHA-256 of its weights; None: it was gone when it was asked for.
        provenance: what was known of it.
    """

    place: str
    weights_sha256: str | None = None
    provenance: Provenance | None = None


class Provenance(_Record):
    """Who made a model, of what.

    Attributes:
        task: what was learnt.
        recipe_name: the recipe that was named.
        recipe: the resolved recipe; None: not known.
        recipe_sha256: of the run's ``recipe.yaml``.
        size: named size of the model.
        run: name of the run folder.
        step: steps made.
        stores: fingerprint of each store that was read.
        scores: of these very weights on the validation data; empty: not validated.
        started_from: where the first weights come from; None: as ``recipe.init`` says.
        versions: of Python and of the packages that matter.
        command: the command line of the run.
        created: when the run was started (ISO 8601, UTC).
        saved: when these weights were written (ISO 8601, UTC).
    """

    schema_version: int = SCHEMA_VERSION
    task: str
    recipe_name: str
    recipe: dict[str, Any] | None = None
    recipe_sha256: str | None = None
    size: str = ""
    run: str = ""
    step: int = Field(ge=0)
    stores: dict[str, str] = Field(default_factory=dict)
    scores: dict[str, ScoreRecord] = Field(default_factory=dict)
    started_from: Start | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    command: str = ""
    created: str = ""
    saved: str = ""


def write_provenance(folder: Path, run: RunInfo, step: int, scores: Mapping[str, Any]) -> None:
    """Write ``provenance.json`` into a model folder in the making.

    Args:
        folder: the checkpoint, before it is sealed.
        run: the run that makes it.
        step: steps made.
        scores: of these very weights, by name: :class:`~xvlm_core.tasks.base.Score` or a mapping
            of its fields; empty: not validated.

    Raises:
        OSError: the disk is full or read-only.
    """
    remember_start(run)
    write(folder, of_run(run, step, scores))


def write(folder: Path, provenance: Provenance) -> None:
    """Write ``provenance.json`` as it is."""
    (folder / PROVENANCE).write_bytes(to_bytes(provenance))


def to_bytes(provenance: Provenance) -> bytes:
    """The content of ``provenance.json``."""
    return json_bytes(provenance.model_dump(mode="json"))


def read_provenance(folder: Path) -> Provenance | None:
    """The provenance of a model folder; None: it carries none.

    Raises:
        CheckpointError: the file is unreadable, damaged, or of a newer xvlm.
    """
    path = folder / PROVENANCE
    if not path.exists():
        return None
    return _read(path, Provenance)


def of_run(run: RunInfo, step: int, scores: Mapping[str, Any]) -> Provenance:
    """What a run says of the weights of one of its steps."""
    return Provenance(
        task=run.task,
        recipe_name=run.recipe,
        recipe=_recipe(run),
        recipe_sha256=run.recipe_sha256,
        size=run.size,
        run=run.name,
        step=step,
        stores=dict(run.stores),
        scores={name: _score(score) for name, score in scores.items()},
        started_from=_start(run),
        versions=dict(run.versions),
        command=run.command,
        created=run.created,
        saved=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def of_model(folder: Path) -> Provenance | None:
    """All that is known of a model folder: its own file, and the run that it lies in.

    A checkpoint is often validated after it is written: its scores are then in the run's log.

    Raises:
        CheckpointError: the provenance, or the run's ``run.json``, is damaged.
    """
    from xvlm_core.train import runs

    found = read_provenance(folder)
    run_folder = run_of(folder)
    if run_folder is None:
        return found
    run, step = runs.read(run_folder), step_of(folder.absolute())
    if found is None:
        return of_run(run, step, scores_at(run, step)).model_copy(update={"saved": ""})
    if not found.scores:
        scores = {name: _score(score) for name, score in scores_at(run, step).items()}
        return found.model_copy(update={"scores": scores})
    return found


def run_of(folder: Path) -> Path | None:
    """The run whose checkpoint a folder is, or None."""
    folder = folder.absolute()
    run = folder.parent.parent
    if not _STEP.fullmatch(folder.name) or folder.parent.name != "checkpoints":
        return None
    return run if (run / "run.json").is_file() else None


def scores_at(run: RunInfo, step: int) -> dict[str, Any]:
    """What the run's log says of the validation after a step; empty: nothing."""
    try:
        lines = run.metrics.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    for text in reversed(lines):
        try:
            line = json.loads(text)
            if line["kind"] == "eval" and line["step"] == step:
                return dict(line["scores"])
        except (ValueError, KeyError, TypeError):  # the last line of a killed run
            continue
    return {}


def remember_start(run: RunInfo) -> None:
    """Note the digest of the model that a run starts from in the run's folder, once.

    Best called when the run is made: the model may be gone or replaced later.
    """
    path = run.folder / START
    if run.started_from is None or path.exists():
        return
    write_atomically(path, json_bytes(_look_at(Path(run.started_from)).model_dump(mode="json")))


def _start(run: RunInfo) -> Start | None:
    if run.started_from is None:
        return None
    path = run.folder / START
    try:
        return _read(path, Start)
    except CheckpointError as error:  # no reason to lose a checkpoint
        if path.exists():
            warnings.warn(error.what, ProvenanceWarning, stacklevel=4)
    return Start(place=place_of_cached(Path(run.started_from)) or run.started_from)


def _look_at(source: Path) -> Start:
    place = place_of_cached(source) or str(source)
    before = None
    try:
        before = of_model(source) if source.is_dir() else None
    except CheckpointError as error:  # its weights could be read all the same
        warnings.warn(error.what, ProvenanceWarning, stacklevel=4)
    weights = source / WEIGHTS if source.is_dir() else source
    try:
        stamp = weights.stat()
        digest = _listed(source) or _sha256(weights, stamp.st_size, stamp.st_mtime_ns)
    except OSError:
        digest = None
    return Start(place=place, weights_sha256=digest, provenance=before)


def _listed(folder: Path) -> str | None:
    """The digest that the folder's manifest gives for its weights (it is checked on reading)."""
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        return str(content["files"][WEIGHTS]["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@functools.lru_cache(maxsize=8)
def _sha256(path: Path, size: int, changed: int) -> str:
    return sha256_file(path)


def _recipe(run: RunInfo) -> dict[str, Any] | None:
    try:
        content = yaml.safe_load(run.recipe_file.read_bytes())
    except (OSError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None


def _score(score: Any) -> ScoreRecord:
    fields = ScoreRecord.model_fields
    known = (
        {name: score[name] for name in fields if name in score}
        if isinstance(score, Mapping)
        else {name: getattr(score, name) for name in fields if hasattr(score, name)}
    )
    value = known["value"]
    known["value"] = float(value) if value is not None and math.isfinite(value) else None
    return ScoreRecord.model_validate(known)


_R = TypeVar("_R", bound=_Record)


def _read(path: Path, kind: type[_R]) -> _R:
    try:
        content = json.loads(path.read_bytes())
        version = content.get("schema_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise CheckpointError(
                f"{path} was written by a newer xvlm (format {version})",
                where=str(path),
                try_="pip install --upgrade xvlm",
            )
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = f"{key}: {first['msg']}" if key else first["msg"]
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
    raise CheckpointError(
        f"{path} is damaged: {reason}",
        where=str(path),
        try_="use another checkpoint of the run (xvlm ls runs), or copy the folder again",
    )
