"""The hidden folder that becomes a store: what was done before a stop is not done again."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from xvlm_core.data import store_assembly as assembly
from xvlm_core.data.manifest import LEDGER, MANIFEST, Manifest, Shard, sha256_file
from xvlm_core.data.shard_writer import (
    PARTS,
    PICTURES,
    ShardDone,
    ledger_part,
    looks_part,
    same_part,
    sync,
    sync_folder,
)
from xvlm_core.errors import DataError, OutputError

_DONE = f"{PARTS}/shards.jsonl"
_KEY = f"{PARTS}/key"
_OURS = re.compile(
    r"manifest\.json|ledger\.jsonl|same\.npy|looks\.npy|answers\.json|columns\.json|pictures"
    r"|records-\d+\.(jsonl|idx\.npy)|shard-\d+\.tar"
)
"""What a store is made of."""


class StoreFolder:
    """The hidden folder that becomes a store: ``.NAME.partial`` beside it, then renamed.

    What serves the making alone is in its folder ``parts``, which is moved out of the way just
    before: a run that is killed at any moment leaves all that it did.

    Args:
        folder: where the store will be; must not exist, or be empty.
        image_root: folder of the pictures; None: they are in the store.
        overwrite: replace an existing store.

    Raises:
        OutputError: at once, if the folder is not empty (with ``overwrite``: not a store, or it
            holds the pictures to be read); later, if the disk is full or read-only.
        DataError: the image root has a name that cannot be written down.
    """

    def __init__(self, folder: Path, image_root: Path | None, *, overwrite: bool = False) -> None:
        self.folder = Path(os.path.realpath(folder))
        self.image_root = self.folder
        if image_root is not None:
            self.image_root = Path(os.path.realpath(image_root))
        self._pictures_elsewhere = image_root is not None
        self.given = folder
        self.overwrite = overwrite
        self.work = self._beside("partial")
        self.done: dict[int, ShardDone] = {}
        self.events: dict[int, str] = {}
        self._lock: IO[str] | None = None
        self._refuse_name()
        self._refuse(overwrite)

    def _beside(self, end: str) -> Path:
        return self.folder.parent / f".{self.folder.name}.{end}"

    def _refuse_name(self) -> None:
        if self.image_root.is_relative_to(self.folder):  # the manifest has the rest of it alone
            return
        try:
            str(self.image_root).encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"the path of the folder {str(self.image_root)!r} is not UTF-8",
                try_="another name of the folder, or a link to it",
            ) from error

    def _refuse(self, overwrite: bool) -> None:
        if self.folder == Path.cwd():
            raise OutputError("the current folder cannot become a store", try_="another -o FOLDER")
        try:
            if not os.path.lexists(self.folder):
                return
            if not self.folder.is_dir():
                raise OutputError(f"{self.given} is not a folder", try_="another -o FOLDER")
            if not any(self.folder.iterdir()):
                return
        except OSError as error:
            raise cannot_write(self.given, error) from error
        if not overwrite:
            raise OutputError(f"{self.given} is not empty", try_="--overwrite")
        if not (self.folder / MANIFEST).is_file():
            raise OutputError(
                f"{self.given} is not empty and not a prepared store: not overwritten",
                try_="another -o FOLDER",
            )
        if self._pictures_elsewhere and self.image_root.is_relative_to(self.folder):
            raise OutputError(
                f"overwriting {self.given} would delete the pictures to be read",
                where=str(self.image_root),
                try_="another -o FOLDER",
            )
        foreign = sorted(p.name for p in self.folder.iterdir() if not _OURS.fullmatch(p.name))
        if foreign:
            raise OutputError(
                f"overwriting {self.given} would delete what is no part of a store: "
                f"{', '.join(foreign[:5])}",
                try_="move it away, or another -o FOLDER",
            )

    def begin(self, key: str) -> None:
        """Open the hidden folder; ``done`` then has the shards of an earlier run with this key.

        Raises:
            OutputError: it cannot be written, or another process is writing it.
        """
        with self.writing():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            old, aside = self._beside("old"), self._beside("parts")
            if old.is_dir():  # of a run that was killed while it replaced a store
                shutil.rmtree(old) if self.folder.exists() else os.rename(old, self.folder)
            if aside.is_dir() and self.work.is_dir() and not (self.work / PARTS).exists():
                os.rename(aside, self.work / PARTS)  # killed between the last two renames
            shutil.rmtree(aside, ignore_errors=True)
            if not self._same_key(key):
                self.clear()
                (self.work / _KEY).write_text(key, encoding="utf-8")
            self.done = self._read_done()

    def clear(self) -> None:
        """Empty the hidden folder."""
        shutil.rmtree(self.work, ignore_errors=True)
        (self.work / PARTS).mkdir(parents=True)
        self.done.clear()

    def _take_lock(self) -> None:
        path = self._beside("lock")
        try:
            import fcntl
        except ImportError:  # Windows: two processes at once are not noticed there
            return
        while True:
            lock = open(path, "a")  # noqa: SIM115 (closed in release)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.close()
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    return  # a file system without locks
                raise OutputError(
                    f"another xvlm prepare-data is writing {self.given}",
                    where=str(self.work),
                    try_="wait for it, or another -o FOLDER",
                ) from error
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
                self._lock = lock
                return
            lock.close()  # its last owner had removed it: that of now is another file

    def _same_key(self, key: str) -> bool:
        path = self.work / _KEY
        return path.is_file() and path.read_text(encoding="utf-8") == key

    def _read_done(self) -> dict[int, ShardDone]:
        path = self.work / _DONE
        found: dict[int, ShardDone] = {}
        if not path.is_file():
            return found
        good, content = b"", path.read_bytes()
        for line in content.splitlines(keepends=True):
            try:
                value = json.loads(line)
                shard = Shard.model_validate(value["shard"])
                done = ShardDone(value["number"], shard, value["counts"])
            except (ValueError, KeyError):  # the line that was being written at the stop
                break
            if not line.endswith(b"\n"):
                break
            good += line
            self.events[done.number] = value.get("events", "")
            if self._is_there(done):
                found[done.number] = done
        if good != content:
            new = path.with_suffix(".new")
            new.write_bytes(good)
            os.replace(new, path)
        return found

    def _is_there(self, done: ShardDone) -> bool:
        number, shard = done.number, done.shard
        parts = (shard.index, ledger_part(number), same_part(number), looks_part(number))
        file = self.work / shard.file
        whole = file.is_file() and file.stat().st_size == shard.bytes
        return whole and all((self.work / name).is_file() for name in parts)

    def add(self, done: ShardDone, events: str = "") -> None:
        """Note that a shard is done: from now on it is not done again.

        Args:
            done: the shard.
            events: what it was made of (a digest): if that differs the next time, it is done again.
        """
        line = {
            "number": done.number,
            "events": events,
            "shard": done.shard.model_dump(),
            "counts": done.counts,
        }
        with self.writing(), open(self.work / _DONE, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            sync(file)
        self.done[done.number] = done

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turns an ``OSError`` of the block (disk full, read-only) into an ``OutputError``."""
        try:
            yield
        except OSError as error:
            raise cannot_write(self.given, error) from error

    def finish(
        self, *, source: str, command: str, files: Mapping[str, bytes], **about: Any
    ) -> Manifest:
        """Put the shards together and the folder in place.

        Args:
            source: for the manifest.
            command: for the manifest.
            files: further files (name: content).
            about: further fields of the manifest.

        Raises:
            DataError: records have the same id (naming them).
        """
        command = command.encode("utf-8", "backslashreplace").decode()  # paths can be any bytes
        shards = [self.done[number] for number in sorted(self.done)]
        assert [done.number for done in shards] == list(range(len(shards)))
        try:
            assembly.refuse_repeated_ids(self.work, [done.shard for done in shards])
        except DataError:
            self.remove()
            raise
        with self.writing():
            assembly.join_ledgers(self.work, len(shards))
            names = [LEDGER, *assembly.join_arrays(self.work, shards)]
            for name, content in files.items():
                with open(self.work / name, "wb") as file:
                    file.write(content)
                    sync(file)
                names.append(name)
            checksums = {name: sha256_file(self.work / name) for name in names}
            root = self.folder if about.get("packed") else self.image_root
            if root.is_relative_to(self.folder):
                root = root.relative_to(self.folder)
            manifest = assembly.manifest_of(
                shards,
                source=source,
                command=command,
                image_root=root.as_posix(),
                checksums=checksums,
                **about,
            )
            with open(self.work / MANIFEST, "w", encoding="utf-8", newline="\n") as file:
                file.write(manifest.model_dump_json(indent=2) + "\n")
                sync(file)
            self._sweep(manifest)
            sync_folder(self.work)
            self._into_place()
        return manifest

    def _sweep(self, manifest: Manifest) -> None:
        """Remove what a killed run left half-written, and shards without records."""
        keep = {MANIFEST, PICTURES, PARTS, *manifest.checksums}
        keep |= {name for shard in manifest.shards for name in (shard.file, shard.index)}
        for path in self.work.iterdir():
            if path.name not in keep:
                path.unlink()

    def _into_place(self) -> None:
        old, aside = self._beside("old"), self._beside("parts")
        self._refuse(self.overwrite)  # what came there in the meantime is not ours to replace
        existed = self.folder.exists()
        if existed:
            os.rename(self.folder, old)
        try:
            os.rename(self.work / PARTS, aside)
            os.rename(self.work, self.folder)
        except OSError:
            if existed:
                os.rename(old, self.folder)
            raise
        sync_folder(self.folder.parent)
        for path in (aside, old):
            shutil.rmtree(path, ignore_errors=True)

    def ledgers(self) -> list[Path]:
        """Those of the shards that are done, in order."""
        return [self.work / ledger_part(number) for number in sorted(self.done)]

    @property
    def has_work(self) -> bool:
        """Whether a shard is done that a next run need not do."""
        return (self.work / _DONE).is_file()

    def release(self) -> None:
        """Let others write; what is done stays for a next run."""
        if self._lock is not None:
            self._beside("lock").unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def remove(self) -> None:
        """Give up: leave nothing behind."""
        self.done.clear()
        for path in (self.work, self._beside("parts")):
            shutil.rmtree(path, ignore_errors=True)
        self.release()


def cannot_write(folder: Path, error: OSError) -> OutputError:
    """What to say of a disk that is full, read-only or gone."""
    reason = error.strerror or str(error)
    return OutputError(
        f"cannot write {folder}: {reason}",
        where=str(error.filename) if error.filename else None,
        try_="another -o FOLDER, or make room or give write permission there",
    )
