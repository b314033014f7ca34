"""What ``xvlm evaluate`` says and writes: figures, the paper's beside them, predictions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xvlm_cli import output as outputs
from xvlm_cli.evaluate_files import PredictionFiles
from xvlm_cli.evaluate_plan import Asked
from xvlm_cli.output import Output, table
from xvlm_core.listing import some

if TYPE_CHECKING:
    from xvlm_core.inference.checkpoints import FoundModel
    from xvlm_core.metrics.calibration import ReliabilityBin, Temperature
    from xvlm_core.tasks.base import Prediction, Scores
    from xvlm_core.tasks.presence import Calibration, PresenceReport
    from xvlm_core.weights.background import Background
    from xvlm_core.weights.folder import ModelInfo


@dataclass(frozen=True)
class Answered:
    """The answers to a split, and its figures.

    Attributes:
        scores: by name.
        dropped: items that could not be asked, by reason.
        predictions: the answers with what they are compared with.
        missing: ids without an answer, counted as wrong.
        examples: names of some of the dropped, by reason.
        skipped: by name of a score, why it was not taken.
    """

    scores: Scores
    dropped: Mapping[str, int]
    predictions: Sequence[Prediction]
    missing: Sequence[str] = ()
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The paper's figures for a split, and how ours came about otherwise."""

    scores: Scores
    differences: list[str]


@dataclass(frozen=True)
class KnownModel:
    """A model that answered, and what is recorded of its training."""

    info: ModelInfo
    background: Background


def known_model(found: FoundModel, out: Output) -> KnownModel:
    """What is known of the model that answers.

    A damaged record is said, and nothing more: the answers are none the worse.
    """
    from xvlm_core.errors import CheckpointError
    from xvlm_core.weights.background import Background, background_of
    from xvlm_core.weights.folder import read_info

    info, background = read_info(found.folder), Background()
    try:
        background = background_of(found.folder)
    except CheckpointError as error:
        out.warn(f"how the model was trained is not known: {error.what}")
    return KnownModel(info, background)


def beside_the_paper(
    asked: Asked, split: str, answered: Answered, model: KnownModel | None
) -> Comparison:
    """The scores with the paper's figure for the same data, where it has one.

    A figure is of a task's own models: one that was trained for another task has none, but for a
    pre-trained model that retrieves.

    Args:
        asked: which data.
        split: of them.
        answered: ours.
        model: that answered; None: it is not known which one.
    """
    from xvlm_core.metrics import paper
    from xvlm_core.metrics.paper_caveats import Answers, Model, caveats

    scores = answered.scores
    if len(asked.stores) != 1:
        return Comparison(scores, [])
    (store,) = asked.stores
    manifest = store.manifest
    dataset = paper.dataset_of(store.name, manifest.source, manifest.command)
    task: str | None = asked.task
    if model is not None and model.info.task != asked.task:
        zero_shot = (model.info.task, asked.task) == ("pretrain", "retrieval")
        task = "retrieval, zero-shot" if zero_shot else None
    if dataset is None or task is None:
        return Comparison(scores, [])
    ours = None
    if model is not None:
        shape = model.info.config
        ours = Model(shape.size, shape.vision.image_size, model.info.about, model.background)
    found = dict(scores)
    differences: list[str] = []
    for name, score in scores.items():
        figures = [f for f in paper.figures(task, dataset, split) if f.metric == name]
        if not figures:
            continue
        found[name] = dataclasses.replace(score, reference=paper.said(figures))
        answers = Answers.of(
            answered.predictions, n=score.n, split=split, proposals=asked.proposals
        )
        differences += caveats(figures[0], answers, ours)
    return Comparison(found, list(dict.fromkeys(differences)))


def write(files: PredictionFiles, answered: Mapping[str, Answered], out: Output) -> dict[str, Path]:
    """Write the predictions of each split, whole or not at all.

    Raises:
        OutputError: a place cannot be written.
    """
    if files.else_in is not None:
        try:
            return _write(files, answered)
        except OSError as error:
            out.note(f"predictions go to {files.else_in}/: {error.strerror}: {error.filename}")
            files = files.elsewhere()
    with outputs.writing(next(iter(files.paths.values()), Path())):
        return _write(files, answered)


def _write(files: PredictionFiles, answered: Mapping[str, Answered]) -> dict[str, Path]:
    from xvlm_core.train.files import write_atomically

    for split, path in files.paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(p, ensure_ascii=False) + "\n" for p in answered[split].predictions]
        # a lone surrogate of a file's name: as JSON escapes it
        write_atomically(path, "".join(lines).encode(errors="backslashreplace"))
    return dict(files.paths)


def warn(split: str, answered: Answered, out: Output) -> None:
    """Say what was left out, with a few names, and what was missing."""
    for reason, n in answered.dropped.items():
        names = answered.examples.get(reason, ())
        more = " ..." if n > len(names) else ""
        out.warn(
            f"{split}: {n:,} left out: {reason}" + (f" ({', '.join(names)}{more})" if names else "")
        )
    if answered.missing:
        n = len(answered.missing)
        out.warn(f"{split}: {n:,} missing, counted as wrong: {some(answered.missing, 5)}")


def split_value(
    answered: Answered,
    compared: Comparison,
    presence: PresenceReport | None,
    path: Path | None,
) -> dict[str, Any]:
    """A split in the JSON document."""
    return {
        "scores": {name: vars(score) for name, score in compared.scores.items()},
        "dropped": dict(answered.dropped),
        "dropped_examples": {reason: list(names) for reason, names in answered.examples.items()},
        "missing": list(answered.missing),
        "skipped": dict(answered.skipped),
        "predictions": path,
        "presence": None if presence is None else dataclasses.asdict(presence),
        "differences_from_the_paper": compared.differences,
    }


def split_lines(
    answered: Answered,
    compared: Comparison,
    presence: PresenceReport | None,
    path: Path | None,
) -> list[str]:
    """A split for people."""
    has_paper = any(score.reference for score in compared.scores.values())
    header = ["score", "value", "95 %", "n", *(["the paper"] if has_paper else []), "how"]
    rows = [
        [
            name,
            f"{score.value:.4f}",
            _interval(score.interval),
            score.n,
            *([score.reference or ""] if has_paper else []),
            score.convention,
        ]
        for name, score in compared.scores.items()
    ]
    lines = table(header, rows)
    lines += [f"{name} was skipped: {reason}" for name, reason in answered.skipped.items()]
    lines += [f"differs from the paper: {text}" for text in compared.differences]
    if presence is not None:
        lines += ["", *_presence_lines(presence)]
    if path is not None:
        lines += ["", f"predictions: {path}"]
    return lines


def _interval(found: tuple[float, float] | None) -> str:
    if found is None:
        return ""
    low, high = found
    return f"[{low:.4f}, {high:.4f}]"


def _presence_lines(presence: PresenceReport) -> list[str]:
    lines = [f"probability that a phrase is there, {presence.n:,} phrases: ECE "]
    lines[0] += _error(presence.as_said)
    if presence.after is not None:
        lines[0] += f", with the temperature {_error(presence.after)}"
    rows = [_bin(row) for row in presence.as_said.rows if row.n]
    return lines + table(("said", "phrases", "mean", "of them there"), rows)


def _error(found: Calibration) -> str:
    return f"{found.ece:.4f} {_interval(found.interval)}".rstrip()


def _bin(row: ReliabilityBin) -> tuple[str, int, str, str]:
    return (
        f"{row.lower:.1f} to {row.upper:.1f}",
        row.n,
        f"{row.mean_probability:.3f}",
        f"{row.frequency:.3f}",
    )


def temperature_line(temperature: Temperature, split: str) -> str:
    """The fitted temperature in a line."""
    text = (
        f"temperature {temperature.value:.4f}, fitted on {temperature.n:,} phrases of {split}: "
        f"negative log likelihood {temperature.loss_before:.4f}, then {temperature.loss_after:.4f}"
    )
    return text + (" (the limit of the search)" if temperature.at_limit else "")
