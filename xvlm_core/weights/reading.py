"""Reading files of weights made by others, and accounting for every tensor in them."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from xvlm_core.errors import CheckpointError
from xvlm_core.weights.interpolate import fit_positions

TORCH_SUFFIXES = (".th", ".pth", ".pt", ".bin")
# where training scripts put the state dict inside the file
_ENTRIES = ("model", "state_dict")
_MOST_LINES = 12


@dataclass(frozen=True)
class Note:
    """A tensor and what happened to it."""

    name: str
    note: str

    def __str__(self) -> str:
        return f"{self.name}: {self.note}"


@dataclass(frozen=True)
class Report:
    """What became of every tensor of a file and of every tensor of the model.

    Each tensor of the file is matched, copied, converted, computed, tied, dropped, unexpected or
    mismatched; each tensor of the model that is wanted is matched, copied, converted, missing,
    mismatched or fresh.

    Attributes:
        source: the file.
        matched: our names, taken bit for bit.
        copied: our names, taken bit for bit from another name in the file, and which: one may
            serve several.
        converted: our names; resized, or of another float type in the file.
        computed: names in the file that the model computes and does not store (official files).
        tied: names in the file that stand for a tensor it has under another name, too (the same).
        dropped: names in the file that the model has no use for, and why.
        missing: our names that the file should have had.
        unexpected: names in the file that mean nothing to the model.
        mismatched: our names whose shape in the file does not fit; not loaded.
        fresh: our names that such a file never has; they keep their initial values.
        warnings: what could not be checked.
        numbers: how many numbers a tensor holds, by its name, as far as known.
    """

    source: str
    matched: tuple[str, ...] = ()
    copied: tuple[Note, ...] = ()
    converted: tuple[Note, ...] = ()
    computed: tuple[Note, ...] = ()
    tied: tuple[Note, ...] = ()
    dropped: tuple[Note, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[Note, ...] = ()
    fresh: tuple[Note, ...] = ()
    warnings: tuple[str, ...] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Nothing missing, unexpected or mismatched."""
        return not (self.missing or self.unexpected or self.mismatched)

    def summary(self) -> str:
        """One line of counts."""
        counts = {
            "matched": self.matched,
            "copied": self.copied,
            "converted": self.converted,
            "computed": self.computed,
            "tied": self.tied,
            "dropped": self.dropped,
            "left at their initial values": self.fresh,
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.mismatched,
        }
        return ", ".join(f"{len(names)} {what}" for what, names in counts.items() if names)

    def lines(self) -> list[str]:
        """The summary and a line for each tensor that was not simply matched."""
        return [
            f"{self.source}: {self.summary() or 'no tensors'}",
            *(f"copied {note}" for note in self.copied),
            *(f"converted {note}" for note in self.converted),
            *(f"computed {note}" for note in self.computed),
            *(f"tied {note}" for note in self.tied),
            *(f"dropped {note}" for note in self.dropped),
            *(f"fresh {note}" for note in self.fresh),
            *(f"warning: {warning}" for warning in self.warnings),
            *self.problems(),
        ]

    def full_lines(self) -> list[str]:
        """Every tensor by name, under the count of tensors and of numbers of what became of it."""
        named = {
            "matched": [Note(name, "") for name in self.matched],
            "copied": self.copied,
            "converted": self.converted,
            "computed": self.computed,
            "tied": self.tied,
            "dropped": self.dropped,
            "left at their initial values": self.fresh,
            "missing": [Note(name, "") for name in self.missing],
            "unexpected": [Note(name, "") for name in self.unexpected],
            "of another shape": self.mismatched,
        }
        lines = [f"{self.source}: {self.summary() or 'no tensors'}"]
        lines += [f"warning: {warning}" for warning in self.warnings]
        for what, notes in named.items():
            if notes:
                total = sum(self.numbers.get(note.name, 0) for note in notes)
                lines.append(f"{what}: {len(notes):,} tensors, {total:,} numbers")
            for note in notes:
                count = self.numbers.get(note.name)
                parts = (note.name, None if count is None else f"{count:,}", note.note)
                lines.append("  " + "  ".join(part for part in parts if part))
        return lines

    def problems(self) -> list[str]:
        """A line for each tensor that is missing, unexpected or mismatched."""
        return [
            *(f"other shape: {note}" for note in self.mismatched),
            *(f"missing: {name}" for name in self.missing),
            *(f"unexpected: {name}" for name in self.unexpected),
        ]

    def require_complete(self, what: str, *, try_: str) -> None:
        """Raise where anything is missing, unexpected or mismatched.

        Args:
            what: the error's line, e.g. "x.pth does not fit this model"; counts are appended.
            try_: what to type next.

        Raises:
            CheckpointError: naming the first dozen tensors.
        """
        if self.complete:
            return
        problems = self.problems()
        details = problems[:_MOST_LINES]
        if len(problems) > _MOST_LINES:
            details.append(f"... and {len(problems) - _MOST_LINES} more")
        raise CheckpointError(
            f"{what} ({self.summary()})", where=self.source, try_=try_, details=details
        )


@dataclass(frozen=True)
class Placed:
    """Tensors that fit the model, by our names, and what had to be done to them."""

    state: dict[str, Tensor]
    matched: tuple[str, ...]
    converted: tuple[Note, ...]
    mismatched: tuple[Note, ...]


def place(candidates: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Placed:
    """Fit tensors to the model: positions resized, floats of another type converted.

    Args:
        candidates: tensors by our names.
        target: the model's state dict (may be on the meta device) with at least those names.
    """
    state: dict[str, Tensor] = {}
    matched: list[str] = []
    converted: list[Note] = []
    mismatched: list[Note] = []
    for name, value in candidates.items():
        wanted = target[name]
        notes: list[str] = []
        if value.shape != wanted.shape:
            fitted = fit_positions(name, value, wanted.shape)
            if fitted is None:
                shapes = f"{list(value.shape)} in the file, {list(wanted.shape)} in the model"
                mismatched.append(Note(name, shapes))
                continue
            value, note = fitted
            notes.append(note)
        if value.dtype != wanted.dtype:
            if not (value.dtype.is_floating_point and wanted.dtype.is_floating_point):
                types = f"{value.dtype} in the file, {wanted.dtype} in the model"
                mismatched.append(Note(name, types))
                continue
            notes.append(f"{value.dtype} -> {wanted.dtype}")
            value = value.to(wanted.dtype)
        state[name] = value
        if notes:
            converted.append(Note(name, "; ".join(notes)))
        else:
            matched.append(name)
    return Placed(state, tuple(matched), tuple(converted), tuple(mismatched))


def account(
    source: str,
    candidates: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    dropped: Sequence[Note],
    unexpected: Sequence[str],
    fresh: Mapping[str, str] | None = None,
) -> tuple[Placed, Report]:
    """Fit tensors to the model, and say what became of every one.

    Args:
        source: the file.
        candidates: tensors by our names.
        target: see :func:`place`.
        dropped: names in the file that the model has no use for, and why.
        unexpected: names in the file that mean nothing to the model.
        fresh: our names that such a file never has, and why.
    """
    fresh = fresh or {}
    placed = place(candidates, target)
    report = Report(
        source,
        matched=placed.matched,
        converted=placed.converted,
        dropped=tuple(dropped),
        missing=tuple(name for name in target if name not in candidates and name not in fresh),
        unexpected=tuple(unexpected),
        mismatched=placed.mismatched,
        fresh=tuple(Note(name, why) for name, why in fresh.items()),
        numbers={name: value.numel() for name, value in target.items()},
    )
    return placed, report


def read_state_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors``, ``.th``, ``.pth``, ``.pt`` or ``.bin`` file, on the CPU.

    The entries ``model`` and ``state_dict`` are unwrapped; whatever lies beside them (a training
    configuration, an optimiser) is ignored. No code in a file is ever run.

    Args:
        path: the file.

    Raises:
        CheckpointError: missing, of another type, damaged, or a pickle of more than tensors.
    """
    if not path.is_file():
        state_of_path = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {state_of_path}", try_="give the path of a file of weights")
    if path.suffix != ".safetensors" and path.suffix not in TORCH_SUFFIXES:
        raise CheckpointError(
            f"{path.name} is no file of weights: its name must end in .safetensors, "
            f"{', '.join(TORCH_SUFFIXES[:-1])} or {TORCH_SUFFIXES[-1]}",
            where=str(path),
            try_="give the path of a file of weights",
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = load_file(path)
    except Exception as error:  # damaged bytes raise whatever they happen to break
        raise _damaged(path, error) from error
    return state


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise whatever they happen to break
        named = re.search(r"(?:Unsupported global: GLOBAL|GLOBAL) ([\w.]+)", str(error))
        if named is None:
            raise _damaged(path, error) from error
        raise CheckpointError(
            f"{path.name} is refused: it holds {named[1]}, and loading that could run code",
            where=str(path),
            try_="save the tensors alone, as a .safetensors file",
        ) from error
    for entry in _ENTRIES:
        if isinstance(content, Mapping) and isinstance(content.get(entry), Mapping):
            content = content[entry]
            break
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path.name} holds a {type(content).__name__}, not a state dict",
            where=str(path),
            try_="give a file that maps names to tensors",
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path.name} is not a state dict: its entry {name!r} is a {type(value).__name__}",
                where=str(path),
                try_="give a file that maps names to tensors",
            )
    return dict(content)


def _damaged(path: Path, error: Exception) -> CheckpointError:
    with path.open("rb") as file:
        is_pointer = file.read(30).startswith(b"version https://git-lfs")
    if is_pointer:
        return CheckpointError(
            f"{path.name} is a Git LFS pointer, not the weights themselves",
            where=str(path),
            try_="git lfs pull",
        )
    if isinstance(error, pickle.UnpicklingError):  # torch's own text is a page on its settings
        reason = "or a pickle of more than tensors, which could run code"
    else:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    return CheckpointError(
        f"{path.name} is damaged or incomplete: {reason}",
        where=str(path),
        try_="fetch the file again and compare its size",
    )
