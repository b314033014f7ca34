"""Every change that training makes to the disk, one method each. Imports no torch.

The checkpoint writer does nothing to the disk but through :class:`Files` (and the callback that
writes the model), so that a test can stop it at each single operation in turn.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xvlm_core.errors import OutputError


class Files:
    """The real disk."""

    def make_folder(self, path: Path) -> None:
        """Create a folder that must not exist; its parent must."""
        path.mkdir()

    def write(self, path: Path, data: bytes) -> None:
        """Write a whole file (not yet durable)."""
        path.write_bytes(data)

    def sync(self, path: Path) -> None:
        """Make a file, or the list of names in a folder, durable."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, path: Path, target: Path) -> None:
        """Rename; an existing file (never a filled folder) is replaced in one step."""
        os.replace(path, target)

    def remove_file(self, path: Path) -> None:
        """Delete a file or a link."""
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        """Delete an empty folder."""
        path.rmdir()


FILES = Files()


def walk(folder: Path) -> list[Path]:
    """Everything below a folder, deepest first; links are not followed."""
    found: list[Path] = []
    for root, folders, names in os.walk(folder, topdown=False):
        found += [Path(root, name) for name in sorted(names)]
        found += [Path(root, name) for name in sorted(folders)]
    return found


def remove_tree(folder: Path, files: Files = FILES) -> None:
    """Delete a folder and all that is in it."""
    for path in walk(folder):
        if path.is_dir() and not path.is_symlink():
            files.remove_folder(path)
        else:
            files.remove_file(path)
    files.remove_folder(folder)


def write_atomically(path: Path, data: bytes, files: Files = FILES) -> None:
    """Replace a file in one step: a reader, or a crash, sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        files.write(temporary, data)
        files.sync(temporary)
        files.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    files.sync(path.parent)


def json_bytes(value: Any) -> bytes:
    """Readable JSON with a final newline. A file name that is no UTF-8 is escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace")  # a lone surrogate: as JSON escapes it


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one process trains a run. The lock goes with the process, however it ends.

    Raises:
        OutputError: another process is training this run.
    """
    try:
        import fcntl
    except ImportError:  # no such lock on this system
        yield
        return
    with (folder / ".lock").open("a+") as stream:
        try:
            # a record lock: unlike flock's it is not inherited by loader workers, which may
            # outlive a killed process by some seconds
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(
                f"run {folder.name} is being trained by another process",
                where=str(folder),
                try_="wait for it, or start another run",
            ) from error
        yield
