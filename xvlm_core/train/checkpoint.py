"""Checkpoints that are whole or not there. Imports no torch.

A checkpoint is a folder ``step-00000100`` with any files and, written last, ``MANIFEST.json``:
size and SHA-256 of each of them. It is made under a hidden name, made durable, and renamed; only
then are older ones deleted (under a hidden name again). So whatever operation a crash stops at,
a checkpoint that was loadable before is still there, or a newer one is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Collection
from pathlib import Path

from safetensors import SafetensorError

from xvlm_core.errors import CheckpointError, OutputError
from xvlm_core.train.files import FILES, Files, json_bytes, remove_tree, walk

MANIFEST = "MANIFEST.json"
SCHEMA_VERSION = 1
_NAME = re.compile(r"step-(\d{8,})")
_TEMPORARY, _DISCARDED = ".writing-", ".discarded-"


class CheckpointWarning(UserWarning):
    """A checkpoint is damaged and was passed over, or could not be deleted."""


def folder_name(step: int) -> str:
    """``step-00000100`` for step 100."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step a checkpoint folder is named after."""
    match = _NAME.fullmatch(folder.name)
    assert match is not None, folder
    return int(match[1])


def list_steps(checkpoints: Path) -> list[int]:
    """Steps that have a folder, damaged or not, ascending."""
    if not checkpoints.is_dir():
        return []
    names = (_NAME.fullmatch(path.name) for path in checkpoints.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in names if match)


def write(
    checkpoints: Path,
    step: int,
    write_files: Callable[[Path], None],
    *,
    keep_last: int,
    keep: Collection[int],
    files: Files = FILES,
) -> Path:
    """Write the checkpoint of a step, then delete those that are not to be kept.

    Kept are this one, the ``keep_last`` newest up to it, and the steps in ``keep``. Folders of
    later steps are left alone: they can only be damaged ones (:func:`newest` warned of them), and
    are replaced, with a warning, when the run comes to their step again.

    Args:
        checkpoints: folder of all checkpoints; created if missing (its parent exists).
        step: number of updates made.
        write_files: fills a given empty folder.
        keep_last: how many of the newest stay, this one included.
        keep: further steps that stay (the best one).
        files: the disk.

    Returns:
        The folder of the new checkpoint.

    Raises:
        OutputError: the disk is full or read-only. What was there before is untouched, and nothing
            half-written is left.
        CheckpointError: there is a good checkpoint of this step already.
    """
    assert keep_last > 0
    target = checkpoints / folder_name(step)
    temporary = checkpoints / f"{_TEMPORARY}{target.name}-{os.getpid()}"
    try:
        if not checkpoints.is_dir():
            files.make_folder(checkpoints)
            files.sync(checkpoints.parent)
        _remove_leftovers(checkpoints, files)
        _move_damaged_away(target, files)
        files.make_folder(temporary)
        write_files(temporary)
        _seal(temporary, step, files)
        files.rename(temporary, target)
        files.sync(checkpoints)
    except BaseException as error:
        if temporary.is_dir():
            with contextlib.suppress(OSError):
                remove_tree(temporary)
        if isinstance(error, OSError | SafetensorError):
            raise _write_error(error, checkpoints, step) from error
        raise
    _prune(checkpoints, step, keep_last, keep, files)
    return target


def _seal(folder: Path, step: int, files: Files) -> None:
    """Make all files durable, and the manifest last."""
    inside = walk(folder)
    for path in inside:
        files.sync(path)
    listed = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(inside)
        if path.is_file()
    }
    assert listed, "a checkpoint has at least one file"
    manifest = folder / MANIFEST
    files.write(manifest, json_bytes({"schema": SCHEMA_VERSION, "step": step, "files": listed}))
    files.sync(manifest)
    files.sync(folder)


def _remove_leftovers(checkpoints: Path, files: Files) -> None:
    """Delete what a killed writer left: hidden folders only."""
    for path in sorted(checkpoints.iterdir()):
        if path.name.startswith((_TEMPORARY, _DISCARDED)) and path.is_dir():
            remove_tree(path, files)


def _move_damaged_away(target: Path, files: Files) -> None:
    if not target.is_dir():
        return
    try:
        verify(target)
    except CheckpointError as error:
        warnings.warn(f"{error.what}; it is replaced", CheckpointWarning, stacklevel=3)
        discarded = target.with_name(_DISCARDED + target.name)
        files.rename(target, discarded)
        remove_tree(discarded, files)
        return
    raise CheckpointError(
        f"there is a checkpoint of step {step_of(target)} already",
        where=str(target),
        try_="continue the run with --resume, or start another one",
    )


def _prune(
    checkpoints: Path, step: int, keep_last: int, keep: Collection[int], files: Files
) -> None:
    steps = [earlier for earlier in list_steps(checkpoints) if earlier <= step]
    for old in steps[:-keep_last]:
        if old in keep:
            continue
        folder = checkpoints / folder_name(old)
        discarded = folder.with_name(_DISCARDED + folder.name)
        try:
            files.rename(folder, discarded)
            remove_tree(discarded, files)
        except OSError as error:  # the new checkpoint stands: no reason to end the run
            warnings.warn(
                f"old checkpoint {folder} cannot be deleted: {error}",
                CheckpointWarning,
                stacklevel=3,
            )


def verify(folder: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: names the file that is missing, truncated or changed.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        reason = "has no MANIFEST.json" if folder.is_dir() else "does not exist"
        raise CheckpointError(
            f"checkpoint {folder.name} {reason}",
            where=str(folder),
            try_="name another checkpoint, or a run (its best one is taken)",
        )
    try:
        content = json.loads(manifest.read_bytes())
        listed = [
            (str(name), int(entry["size"]), str(entry["sha256"]))
            for name, entry in content["files"].items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, manifest, "is unreadable") from error
    for name, size, sha256 in listed:
        path = folder / name
        try:
            found = path.stat().st_size
            if found != size:
                raise _damaged(folder, path, f"has {found} bytes, not {size}")
            if _sha256(path) != sha256:
                raise _damaged(folder, path, "was changed (SHA-256 differs)")
        except OSError as error:
            raise _damaged(folder, path, f"cannot be read ({error.strerror})") from error


def newest(checkpoints: Path) -> Path | None:
    """The checkpoint of the highest step whose manifest holds; None when there is none.

    Damaged ones are passed over with a :class:`CheckpointWarning` each, and stay where they are.
    """
    for step in reversed(list_steps(checkpoints)):
        folder = checkpoints / folder_name(step)
        try:
            verify(folder)
        except CheckpointError as error:
            warnings.warn(f"{error.what}; it is passed over", CheckpointWarning, stacklevel=2)
            continue
        for name in _strangers(folder):
            warnings.warn(
                f"checkpoint {folder.name} has a file that is not its own: {name}; it is not used",
                CheckpointWarning,
                stacklevel=2,
            )
        return folder
    return None


def _strangers(folder: Path) -> list[str]:
    """Files in a whole checkpoint that its manifest does not name, but for hidden ones."""
    listed = json.loads((folder / MANIFEST).read_bytes())["files"]
    files = [path for path in walk(folder) if path.is_file() and not path.name.startswith(".")]
    names = {path.relative_to(folder).as_posix() for path in files}
    return sorted(names - {*listed, MANIFEST})


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _damaged(folder: Path, path: Path, how: str) -> CheckpointError:
    is_of_run = _NAME.fullmatch(folder.name) and (folder.parent.parent / "run.json").is_file()
    kind = "checkpoint" if _NAME.fullmatch(folder.name) else "model"
    return CheckpointError(
        f"{kind} {folder.name} is damaged: {path.relative_to(folder)} {how}",
        where=str(path),
        try_=(
            "--resume continues from the newest whole checkpoint of the run"
            if is_of_run
            else "copy it again from where it came (xvlm cp), or use another model (xvlm ls runs)"
        ),
    )


def _write_error(error: Exception, checkpoints: Path, step: int) -> OutputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    full = (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "os error 28" in reason
    return OutputError(
        f"checkpoint of step {step} cannot be written: {reason}",
        where=str(checkpoints),
        try_=(
            "free some space, then continue with --resume"
            if full
            else "make the folder writable, then continue with --resume"
        ),
    )
