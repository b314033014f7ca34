"""The index of a folder of pictures: what they are on disk, and a unit vector of each.

On disk ``index.json`` (readable) names one ``vectors-....safetensors``, which is never changed: a
new state of the index is a new file of vectors, then a new ``index.json`` in one step. A reader,
or a process that dies, meets the old state or the new one. Imports no torch.

Legend: N pictures, Q texts, E width of the joint space, K answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xvlm_core.errors import CheckpointError, DataError, OutputError
from xvlm_core.train.files import json_bytes, write_atomically
from xvlm_core.weights.folder import WEIGHTS, ModelInfo

INDEX_FOLDER = ".xvlm-index"
"""Name of the index inside the folder it is of, unless it is kept elsewhere."""

SCHEMA = "xvlm.index/1"
"""A change of what a vector is made of (picture size, resizing, pooling) is a new number."""

FAISS_FROM = 100_000
"""Pictures from which on faiss, if it is installed, does the exact search."""

_MANIFEST = "index.json"
_VECTORS, _VECTORS_ENDING, _LOCK = "vectors-", ".safetensors", ".lock"
_ROWS_AT_ONCE, _QUERIES_AT_ONCE = 65_536, 256
_READS, _PAUSE_SECONDS = 100, 0.02
_PARTS = ("vision.", "vision_proj.")
"""Parameters that make the vector of a picture."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    """A picture of the index.

    Attributes:
        path: from the folder, with forward slashes.
        size: of the file, bytes.
        mtime_ns: when the file was written; with another size or time it is read again.
        width: pixels, upright.
        height: pixels, upright.
    """

    path: str
    size: int
    mtime_ns: int
    width: int
    height: int


@dataclass(frozen=True)
class Builder:
    """The model that made the vectors: others cannot search among them."""

    fingerprint: str
    about: str


@dataclass(frozen=True)
class Hits:
    """The K most similar pictures of each text, the best first.

    Attributes:
        number_QK: of the pictures in the index.
        similarity_QK: cosines.
    """

    number_QK: NDArray[np.int64]
    similarity_QK: Floats


@dataclass(frozen=True)
class SearchIndex:
    """Pictures and their unit vectors, ``vectors_NE``, in the order of their paths."""

    entries: tuple[Entry, ...]
    vectors_NE: Floats

    def search(self, queries_QE: Floats, k: int, *, faiss_from: int = FAISS_FROM) -> Hits:
        """The most similar pictures; of equals the first by path.

        Exact always: a matrix product in parts, or the same by faiss where that is installed.

        Args:
            queries_QE: unit vectors of texts.
            k: answers each; no more than there are pictures.
            faiss_from: pictures from which on faiss is asked.
        """
        k = min(k, len(self.entries))
        if k < 1 or not len(queries_QE):
            shape = (len(queries_QE), max(k, 0))
            return Hits(np.zeros(shape, np.int64), np.zeros(shape, np.float32))
        if len(self.entries) >= faiss_from:
            hits = _by_faiss(self.vectors_NE, queries_QE, k)
            if hits is not None:
                return hits
        blocks = [
            _by_product(self.vectors_NE, queries_QE[start : start + _QUERIES_AT_ONCE], k)
            for start in range(0, len(queries_QE), _QUERIES_AT_ONCE)
        ]
        return Hits(
            np.concatenate([hits.number_QK for hits in blocks]),
            np.concatenate([hits.similarity_QK for hits in blocks]),
        )


def _by_product(vectors_NE: Floats, queries_QE: Floats, k: int) -> Hits:
    n_queries = len(queries_QE)
    number_QK = np.zeros((n_queries, 0), np.int64)
    similarity_QK = np.zeros((n_queries, 0), np.float32)
    for start in range(0, len(vectors_NE), _ROWS_AT_ONCE):
        scores_QR = queries_QE @ vectors_NE[start : start + _ROWS_AT_ONCE].T
        best_QK = np.stack([_best(row, k) for row in scores_QR])
        # earlier rows stand first: a stable sort keeps them before equals
        numbers = np.concatenate([number_QK, best_QK + start], axis=1)
        scores = np.concatenate([similarity_QK, np.take_along_axis(scores_QR, best_QK, 1)], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        number_QK = np.take_along_axis(numbers, order, 1)
        similarity_QK = np.take_along_axis(scores, order, 1)
    return Hits(number_QK, similarity_QK)


def _best(scores_R: Floats, k: int) -> NDArray[np.int64]:
    """Places of the k largest; of equals the first ones."""
    k = min(k, len(scores_R))
    least = np.partition(scores_R, len(scores_R) - k)[len(scores_R) - k]
    places = np.flatnonzero(scores_R >= least)
    best: NDArray[np.int64] = places[np.argsort(-scores_R[places], kind="stable")][:k]
    return best


def _by_faiss(vectors_NE: Floats, queries_QE: Floats, k: int) -> Hits | None:
    """The same search by faiss; None where it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatIP(vectors_NE.shape[1])
    index.add(np.ascontiguousarray(vectors_NE))
    similarity_QK, number_QK = index.search(np.ascontiguousarray(queries_QE), k)
    order = np.lexsort((number_QK, -similarity_QK), axis=1)
    return Hits(
        np.take_along_axis(number_QK, order, 1), np.take_along_axis(similarity_QK, order, 1)
    )


# ------------------------------------------------------------------ on disk


class IndexFolder:
    """Where an index is kept.

    Args:
        place: the folder of the index.
        root: the folder of the pictures.
    """

    def __init__(self, place: Path, root: Path) -> None:
        self.place = place
        self.root = root

    def read(self, builder: Builder) -> SearchIndex | None:
        """The index as it is; None where there is none.

        Raises:
            DataError: it is damaged, of another folder, or was built by another model.
            OutputError: the place holds something else.
        """
        for _ in range(_READS):
            manifest = self._read_file(_MANIFEST)
            if manifest is None:
                self._refuse_foreign()
                return None
            try:
                return self._parse(manifest, builder)
            except FileNotFoundError:
                # between the two reads another process wrote a newer state: read that
                if self._read_file(_MANIFEST) == manifest:
                    raise self._damaged("its file of vectors is missing") from None
                time.sleep(_PAUSE_SECONDS)
        raise self._damaged("it changes faster than it can be read")

    def write(self, index: SearchIndex, builder: Builder) -> None:
        """Put a new state in place of the old one.

        Raises:
            OutputError: the place cannot be written, or holds something else.
        """
        from safetensors.numpy import save

        data = save({"vectors": np.ascontiguousarray(index.vectors_NE, np.float32)})
        digest = hashlib.sha256(data).hexdigest()
        name = f"{_VECTORS}{digest[:16]}{_VECTORS_ENDING}"
        manifest = {
            "schema": SCHEMA,
            "model": asdict(builder),
            "root": os.path.relpath(self.root.absolute(), self.place.absolute()),
            "vectors": name,
            "sha256": digest,
            "pictures": [asdict(entry) for entry in index.entries],
        }
        self.prepare()
        try:
            with _one_writer(self.place) as alone:
                write_atomically(self.place / name, data)
                write_atomically(self.place / _MANIFEST, json_bytes(manifest))
                if alone:
                    self._clean(keep=name)
        except OSError as error:
            raise self._unwritable(error) from error

    def prepare(self) -> None:
        """Make the folder, before the work whose result goes there.

        Raises:
            OutputError: the place cannot be written, or holds something else.
        """
        self._refuse_foreign()
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            probe = self.place / f".{_VECTORS}{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink(missing_ok=True)  # another writer may have cleaned it away
        except OSError as error:
            raise self._unwritable(error) from error

    def _parse(self, manifest: bytes, builder: Builder) -> SearchIndex:
        try:
            value: dict[str, Any] = json.loads(manifest)
            schema = value["schema"]
            if schema != SCHEMA:
                raise DataError(
                    f"the index {self.place} is of another version of xvlm ({schema!r})",
                    where=str(self.place),
                    try_=self.rebuild,
                )
            made_by = Builder(value["model"]["fingerprint"], str(value["model"]["about"]))
            entries = tuple(Entry(**entry) for entry in value["pictures"])
            root, name, digest = str(value["root"]), str(value["vectors"]), value["sha256"]
            _check_entries(entries)
            if not name.startswith(_VECTORS) or Path(name).name != name:
                raise ValueError("no file of vectors")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise self._damaged(f"{_MANIFEST}: {type(error).__name__} {error}") from None
        if os.path.realpath(self.place / root) != os.path.realpath(self.root):
            raise DataError(
                f"the index {self.place} is of another folder than {self.root}",
                where=os.path.realpath(self.place / root),
                try_="another --index, or --rebuild",
            )
        if made_by.fingerprint != builder.fingerprint:
            before = f": {made_by.about}" if made_by.about else ""
            raise DataError(
                f"the index {self.place} was built by another model{before}",
                where=str(self.place),
                try_=f"{self.rebuild}  (or --checkpoint with the model that built it)",
            )
        data = self._read_file(name)
        if data is None:
            raise FileNotFoundError(name)
        if hashlib.sha256(data).hexdigest() != digest:
            raise self._damaged(f"{name}: its checksum does not hold")
        return SearchIndex(entries, self._vectors(data, name, len(entries)))

    def _vectors(self, data: bytes, name: str, n_pictures: int) -> Floats:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            vectors_NE: Floats = load(data)["vectors"]
        except (SafetensorError, KeyError, ValueError) as error:
            raise self._damaged(f"{name}: {error}") from None
        if vectors_NE.dtype != np.float32 or vectors_NE.shape[:1] != (n_pictures,):
            raise self._damaged(f"{name}: {vectors_NE.shape} vectors of {n_pictures} pictures")
        return vectors_NE

    @property
    def rebuild(self) -> str:
        """The command that makes the index anew."""
        elsewhere = self.place.absolute() != (self.root / INDEX_FOLDER).absolute()
        named = f" --index {self.place}" if elsewhere else ""
        return f'xvlm predict retrieval {self.root} "a text" --rebuild{named}'

    def _read_file(self, name: str) -> bytes | None:
        try:
            return (self.place / name).read_bytes()
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise OutputError(f"{self.place} is a file", try_="--index FOLDER") from None
        except OSError as error:
            raise DataError(
                f"the index {self.place} cannot be read: {error.strerror}",
                where=str(self.place / name),
                try_="--index FOLDER",
            ) from error

    def _refuse_foreign(self) -> None:
        """What is not ours is neither read nor written over."""
        if self.place.exists() and not self.place.is_dir():
            raise OutputError(f"{self.place} is a file", try_="--index FOLDER")
        with contextlib.suppress(FileNotFoundError):
            foreign = [name for name in os.listdir(self.place) if not _is_ours(name)]
            if foreign and not (self.place / _MANIFEST).is_file():
                raise OutputError(
                    f"{self.place} is no index: it holds {foreign[0]}",
                    where=str(self.place),
                    try_="--index FOLDER, one that is new or empty",
                )

    def _clean(self, keep: str) -> None:
        """Earlier vectors, and what a process that died left behind."""
        for name in os.listdir(self.place):
            if _is_ours(name) and name not in (keep, _MANIFEST, _LOCK):
                (self.place / name).unlink(missing_ok=True)

    def _damaged(self, reason: str) -> DataError:
        return DataError(
            f"the index {self.place} is damaged: {reason}", where=str(self.place), try_=self.rebuild
        )

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            f"the index of {self.root} cannot be written: {error.strerror or error}",
            where=str(self.place),
            try_="--index FOLDER, one that can be written",
        )


def _check_entries(entries: Sequence[Entry]) -> None:
    for entry in entries:
        numbers = (entry.size, entry.mtime_ns, entry.width, entry.height)
        if not isinstance(entry.path, str) or not all(type(n) is int for n in numbers):
            raise ValueError(f"no picture: {entry}")


def _is_ours(name: str) -> bool:
    bare = name.removeprefix(".")
    return name in (_MANIFEST, _LOCK) or bare.startswith((_VECTORS, _MANIFEST))


@contextlib.contextmanager
def _one_writer(place: Path) -> Iterator[bool]:
    """Writers one after the other; False where the system has no lock for it."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    with (place / _LOCK).open("a+") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX)  # each write is short: wait for it
        except OSError:  # some network disks
            yield False
            return
        yield True


def fingerprint(folder: Path, info: ModelInfo) -> str:
    """What a picture's vector is made by: the shape, and the weights of the picture's side.

    Read from the file as bytes: no weight becomes a tensor.

    Args:
        folder: a model folder.
        info: its ``config.json``.

    Raises:
        CheckpointError: the weights are missing or damaged.
    """
    shape = {"vision": info.config.vision.model_dump(mode="json"), "width": info.config.embed_dim}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    path = folder / WEIGHTS
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
            for name in sorted(name for name in header if name.startswith(_PARTS)):
                tensor = header[name]
                start, stop = tensor["data_offsets"]
                digest.update(f"{name} {tensor['dtype']} {tensor['shape']}".encode())
                stream.seek(8 + length + start)
                digest.update(stream.read(stop - start))
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise CheckpointError(
            f"{path} is damaged or truncated: {error}",
            where=str(path),
            try_="use another checkpoint of the run (xvlm ls runs), or copy the file again",
        ) from None
    return digest.hexdigest()
