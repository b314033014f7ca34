"""Copies whole checkpoints of a run to a place that fsspec knows. Imports no torch.

::

    s3://bucket/runs/pretrain-16m-20261125-021530/
      run.json, recipe.yaml, metrics.jsonl, best.json, trackers.json
      checkpoints/step-00000100/...

What is there is a run folder like the local one, and holds the same checkpoints. A checkpoint's
``MANIFEST.json`` comes last, and goes first when it is deleted: one that has it is whole. Nothing
that fails here ends a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from xvlm_core.errors import CheckpointError, ConfigError, MissingToolError
from xvlm_core.train import checkpoint as checkpoints
from xvlm_core.train.files import remove_tree

WAITS_S = (1.0, 5.0, 20.0)
"""Seconds before the second and each further try."""

_RUN_FILES = ("recipe.yaml", "metrics.jsonl", "best.json", "trackers.json", "run.json")
_LINKS = ".uploading"
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_READ_ONLY = ("http", "https")

# No second try makes these better.
_FINAL = (PermissionError, IsADirectoryError, NotADirectoryError)

_Answer = TypeVar("_Answer")


class UploadWarning(UserWarning):
    """Something of a run could not be copied to where its recipe wants it."""


@dataclass(frozen=True)
class UploadSummary:
    """What became of the checkpoints of a session. Steps are ascending.

    Attributes:
        url: the run folder there.
        copied: steps that were copied.
        skipped: steps that were deleted here before their turn came: copying is slower than
            training writes.
        waiting: steps that are here but not there, for lack of time.
        failed: one line for each thing that could not be copied, with the reason.
    """

    url: str
    copied: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()
    failed: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What a person is told: one line, and one for each failure."""
        words = [f"{len(self.copied)} checkpoints copied to {self.url}"]
        if self.skipped:
            words.append(f"{len(self.skipped)} were replaced by newer ones before their turn came")
        if self.waiting:
            words.append(f"not copied: {', '.join(f'step {step}' for step in self.waiting)}")
        return ["; ".join(words), *self.failed]


class _RefusedError(Exception):
    """The place must not be written to."""


class Uploader:
    """Keeps a copy of a run folder elsewhere, by a thread of its own.

    Args:
        url: where copies of runs are kept: ``s3://bucket/runs``.
        run_folder: of this run; its name is the name of the copy.
        waits: seconds before the second and each further try.

    Raises:
        ConfigError: no such protocol, or one that cannot be written to.
        MissingToolError: fsspec lacks a package for the protocol.
    """

    def __init__(self, url: str, run_folder: Path, *, waits: Sequence[float] = WAITS_S) -> None:
        self._system = _open(url)
        self.url = f"{url.rstrip('/')}/{run_folder.resolve().name}"
        self._root = str(self._system._strip_protocol(self.url)).rstrip("/")
        self._run_folder, self._waits = run_folder, tuple(waits)
        self._links = run_folder / _LINKS
        self._there: dict[int, bytes] | None = None  # manifests of the whole checkpoints there
        self._is_ours = False
        self._announced: set[int] = set()
        self._copied: set[int] = set()
        self._damaged: set[int] = set()
        self._failures: dict[str, str] = {}
        self._warned: set[str] = set()
        self._work = threading.Condition()
        self._wanted, self._done, self._closing = 1, 0, False
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, name="xvlm-upload", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ the training's side

    def checkpoint(self, folder: Path) -> None:
        """A checkpoint was written: it is copied when its turn comes, the newest first."""
        with self._work:
            self._announced.add(checkpoints.step_of(folder))
            self._wanted += 1
            self._work.notify_all()

    def close(self, timeout: float) -> UploadSummary:
        """Copy what is left and the files of the run, and end.

        Args:
            timeout: seconds that this may take.
        """
        with self._work:
            self._closing = True
            self._wanted += 1
            self._work.notify_all()
        self._thread.join(timeout)
        self._hurry.set()  # what still goes on stops at its next step
        here = set(checkpoints.list_steps(self._run_folder / "checkpoints"))
        with self._work:
            copied, failures = set(self._copied), dict(self._failures)
            there = {step for step, manifest in (self._there or {}).items() if manifest}
        left = (self._announced | here) - copied - there
        if self._thread.is_alive():
            failures.setdefault("time", f"copying did not end within {timeout:.0f} s")
        return UploadSummary(
            url=self.url,
            copied=tuple(sorted(copied)),
            skipped=tuple(sorted(left - here)),
            waiting=tuple(sorted(left & here)),
            failed=tuple(failures[what] for what in sorted(failures)),
        )

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while True:
            with self._work:
                self._work.wait_for(lambda: self._wanted > self._done)
                wanted, closing = self._wanted, self._closing
            try:
                self._bring_up_to_date()
            except Exception as error:  # nothing here may end a run
                self._fail("place", f"{self.url} cannot be written", error)
            with contextlib.suppress(OSError):
                if self._links.is_dir():
                    remove_tree(self._links)
            with self._work:
                self._done = wanted
            if closing or self._hurry.is_set():
                return

    def _bring_up_to_date(self) -> None:
        """Copy the checkpoints that are here and not there, the newest first; then tidy up there.

        After each, the newest is looked for anew: it may be a newer one.
        """
        self._check_whose()
        there = self._look_there()
        failed: set[int] = set()
        while not self._hurry.is_set():
            missing = [step for step in self._here() if step not in failed | self._damaged]
            missing = [step for step in missing if there.get(step) != self._manifest(step)]
            if not missing:
                break
            step = missing[-1]
            try:
                self._copy(step)
            except (CheckpointError, FileNotFoundError) as error:
                failed.add(step)
                if step not in self._here():  # it was deleted here meanwhile: no failure
                    self._delete(step)
                elif isinstance(error, CheckpointError):
                    self._damaged.add(step)
                    self._fail(f"step {step}", f"step {step} is not copied: {error.what}")
                else:
                    self._fail(f"step {step}", f"step {step} cannot be copied", error)
            else:
                self._copy_run_files()
                self._delete_there()
        self._copy_run_files()
        with self._work:
            self._failures.pop("place", None)

    def _here(self) -> list[int]:
        return checkpoints.list_steps(self._run_folder / "checkpoints")

    def _manifest(self, step: int) -> bytes | None:
        folder = self._run_folder / "checkpoints" / checkpoints.folder_name(step)
        try:
            return (folder / checkpoints.MANIFEST).read_bytes()
        except OSError:
            return None

    def _copy(self, step: int) -> None:
        """Copy a checkpoint.

        Raises:
            CheckpointError: it is damaged.
            FileNotFoundError: it was deleted here meanwhile.
        """
        assert self._there is not None
        source = self._run_folder / "checkpoints" / checkpoints.folder_name(step)
        linked = self._hold(source)
        checkpoints.verify(linked)
        manifest = (linked / checkpoints.MANIFEST).read_bytes()
        target = self._path("checkpoints", source.name)
        self._delete(step)  # an older attempt, or one of before the run was continued
        for name in sorted(json.loads(manifest)["files"]):
            self._put(linked / name, f"{target}/{name}")
        self._pipe(manifest, f"{target}/{checkpoints.MANIFEST}")
        with self._work:
            self._there[step] = manifest
            self._copied.add(step)
            self._failures.pop(f"step {step}", None)

    def _hold(self, source: Path) -> Path:
        """A second name for a checkpoint's files: training may delete its own while we copy."""
        if self._links.is_dir():
            remove_tree(self._links)
        try:
            shutil.copytree(source, self._links / source.name, copy_function=os.link)
        except (OSError, shutil.Error):  # no hard links on this disk, or it is gone already
            return source
        return self._links / source.name

    def _copy_run_files(self) -> None:
        for name in _RUN_FILES:
            try:
                data = (self._run_folder / name).read_bytes()
            except FileNotFoundError:
                if name == "best.json":
                    self._remove(self._path(name))
                continue
            if name == "metrics.jsonl":  # a line may be being written
                data = data[: data.rfind(b"\n") + 1]
            self._pipe(data, self._path(name))

    def _delete_there(self) -> None:
        """Delete there what was deleted here.

        Steps after the newest whole one of here are left alone: they may be all that is left of
        a run whose checkpoints were lost here.
        """
        here, there = set(self._here()), self._there or {}
        whole = [step for step, manifest in there.items() if manifest]
        newest = max((step for step in whole if step in here or step in self._copied), default=-1)
        for step in sorted(there):
            if step not in here and step < newest:
                self._delete(step)

    def _delete(self, step: int) -> None:
        """Delete a checkpoint there, if it is there: the manifest first."""
        assert self._there is not None
        folder = self._path("checkpoints", checkpoints.folder_name(step))
        with self._work:
            self._there.pop(step, None)
        self._remove(f"{folder}/{checkpoints.MANIFEST}")
        self._remove(folder)

    # ------------------------------------------------------------------ the place

    def _path(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    def _check_whose(self) -> None:
        """Refuse to mix two runs of the same name.

        Raises:
            _RefusedError: a copy of another run is there.
        """
        if self._is_ours:
            return
        ours = json.loads((self._run_folder / "run.json").read_bytes()).get("created")
        theirs = self._read(self._path("run.json"))
        try:
            created = None if theirs is None else json.loads(theirs).get("created")
        except ValueError:  # torn: by us, before
            created = None
        if created not in (None, ours):
            raise _RefusedError(f"another run of this name, made {created}, is there already")
        self._copy_run_files()
        self._is_ours = True

    def _look_there(self) -> dict[int, bytes]:
        if self._there is not None:
            return self._there
        found: dict[int, bytes] = {}
        root = self._path("checkpoints")

        def names() -> list[str]:
            self._system.invalidate_cache()
            try:
                return [str(name) for name in self._system.ls(root, detail=False)]
            except FileNotFoundError:
                return []

        for path in self._try(names):
            name = path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
            if name.startswith("step-") and name[5:].isdecimal():
                manifest = self._read(f"{root}/{name}/{checkpoints.MANIFEST}")
                found[int(name[5:])] = manifest or b""  # b"": not whole
        self._there = found
        return found

    def _read(self, path: str) -> bytes | None:
        def read() -> bytes | None:
            try:
                return bytes(self._system.cat_file(path))
            except FileNotFoundError:
                return None

        return self._try(read)

    def _put(self, source: Path, path: str) -> None:
        def put() -> None:
            self._system.put_file(str(source), path)
            self._system.invalidate_cache()
            size, found = source.stat().st_size, self._system.info(path)["size"]
            if found != size:
                raise OSError(f"{found} bytes of {size} came to {path}")

        self._try(put)

    def _pipe(self, data: bytes, path: str) -> None:
        self._try(lambda: self._system.pipe_file(path, data))

    def _remove(self, path: str) -> None:
        def remove() -> None:
            self._system.invalidate_cache()
            with contextlib.suppress(FileNotFoundError):
                self._system.rm(path, recursive=True)

        self._try(remove)

    def _try(self, action: Callable[[], _Answer]) -> _Answer:
        """Do it; if that fails, again after a while."""
        for wait in (*self._waits, None):
            if self._hurry.is_set():
                raise TimeoutError("there was no time left")
            try:
                return action()
            except Exception as error:  # every file system has errors of its own
                gone = isinstance(error, FileNotFoundError)
                if wait is None or gone or isinstance(error, _FINAL):
                    raise
                self._hurry.wait(wait)
        raise AssertionError("the last try returns or raises")

    def _fail(self, what: str, told: str, error: Exception | None = None) -> None:
        if self._hurry.is_set():
            return
        if error is not None:
            told = f"{told}: {' '.join(str(error).split()) or type(error).__name__}"
        with self._work:
            self._failures[what] = told
        if told not in self._warned:  # the same every time a checkpoint is written: once
            self._warned.add(told)
            with contextlib.suppress(Warning):  # where warnings are errors
                warnings.warn(f"upload: {told}", UploadWarning, stacklevel=2)


def _open(url: str) -> Any:
    """The file system of an address."""
    import fsspec

    protocol = url.partition("://")[0].lower() if "://" in url else "file"
    example = "train.upload=s3://bucket/runs"
    if protocol in _READ_ONLY or "::" in url:
        raise ConfigError(f"nothing can be copied to {url}", where="train.upload", try_=example)
    try:
        options = {"auto_mkdir": True} if protocol in ("file", "local") else {}
        return fsspec.core.url_to_fs(url, **options)[0]
    except ImportError as error:
        extra, told = _EXTRAS.get(protocol), " ".join(str(error).split())
        raise MissingToolError(
            f"copying to {protocol}:// needs a package that is not installed ({told})",
            where="train.upload",
            try_=f"pip install 'xvlm[{extra}]'" if extra else f"what fsspec wants: {told}",
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"no place is of the kind {protocol}://", where="train.upload", try_=example
        ) from error
