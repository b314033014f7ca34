"""Stores at places that fsspec knows, and the cache of what was read from there."""

from __future__ import annotations

import builtins
import functools
import importlib
import multiprocessing
import os
import pickle
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from xvlm_core.data import block_cache, remote
from xvlm_core.data.block_cache import BlockCache, CacheSettings
from xvlm_core.data.files import LocalFiles, as_place, is_url, store_place
from xvlm_core.data.images import PictureError
from xvlm_core.data.records import Record, Region
from xvlm_core.data.remote import RemoteFiles
from xvlm_core.data.shard_writer import Encoded
from xvlm_core.data.store import Store, StoreWriter
from xvlm_core.errors import DataError, MissingToolError, OutputError, UsageError

COMMAND = "xvlm prepare-data jsonl a.jsonl -o store"
N = 24
MIB = 1 << 20


def pixels(i: int) -> bytes:
    """Stands for a picture: stores do not decode."""
    return np.random.default_rng(i).bytes(40_000 + i)


def make(folder: Path, *, packed: bool) -> Path:
    """A store of some shards with its pictures inside."""
    settings: dict[str, Any] = {"image_root": folder, "source": "x", "command": COMMAND}
    with StoreWriter(folder, shard_records=7, packed=packed, **settings) as writer:
        for i in range(N):
            split = "val" if i % 5 == 1 else "train"
            record = Record(
                id=f"r{i}",
                images=(f"{i}.jpg",),
                width=4,
                height=3,
                captions=("a café",),
                regions=(Region("a dog", (0.0, 0.5, 2.0, 3.0)),),
                split=split,
                source="x",
                same_as=(f"coco:{i}",),
            )
            writer.add(record, (Encoded(f"{i}.jpg", pixels(i)),))
    return folder


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("stores")
    return {kind: make(root / kind, packed=kind == "packed") for kind in ("packed", "in_place")}


@pytest.fixture
def cache(tmp_path: Path) -> CacheSettings:
    return CacheSettings(tmp_path / "cache")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS_S", (0.0, 0.0, 0.0))


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    system = MemoryFileSystem()
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def upload(folder: Path, system: MemoryFileSystem, name: str = "") -> str:
    place = f"/stores/{name or folder.name}"
    for file in folder.rglob("*"):
        if file.is_file():
            system.pipe(f"{place}/{file.relative_to(folder).as_posix()}", file.read_bytes())
    return f"memory:/{place}"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the memory file system was asked for bytes, and about a file."""
    counts: Counter[str] = Counter()
    for name in ("cat_file", "info"):
        plain = getattr(MemoryFileSystem, name)

        def counted(self: Any, *a: Any, _plain: Any = plain, _name: str = name, **k: Any) -> Any:
            counts[_name] += 1
            return _plain(self, *a, **k)

        monkeypatch.setattr(MemoryFileSystem, name, counted)
    return counts


def content(store: Store) -> list[tuple[Record, bytes]]:
    found = []
    for i in range(len(store)):
        record = store[i]
        picture = store.picture(record)
        found.append((record, picture if isinstance(picture, bytes) else picture.read_bytes()))
    return found


def expected(store: Store) -> None:
    assert [picture for _, picture in content(store)] == [pixels(i) for i in range(N)]


# Equal to the local store


@pytest.mark.parametrize("kind", ["packed", "in_place"])
@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_a_remote_store_reads_as_the_local_one(
    kind: str,
    protocol: str,
    stores: dict[str, Path],
    cache: CacheSettings,
    memory: MemoryFileSystem,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 64 << 10)  # pictures lie across blocks
    local = Store.open(stores[kind])
    url = upload(stores[kind], memory) if protocol == "memory" else stores[kind].as_uri()
    store = Store.open(url, cache)
    assert store.name == local.name == kind
    assert store.place == url
    assert store.manifest == local.manifest
    assert content(store) == content(local)
    expected(store)
    assert store.indices("val").tolist() == local.indices("val").tolist() == [1, 6, 11, 16, 21]
    assert content(pickle.loads(pickle.dumps(store))) == content(local)
    store.verify()
    assert content(Store.open(f"{url}/", cache)) == content(local)


@pytest.mark.parametrize("kind", ["packed", "in_place"])
def test_loader_workers_read_it(kind: str, stores: dict[str, Path], cache: CacheSettings) -> None:
    from torch.utils.data import DataLoader

    store = Store.open(stores[kind].as_uri(), cache)
    expected(store)  # connections of this process must not be those of the workers
    reader: Any = _Pictures(store)
    loader = DataLoader(reader, batch_size=None, num_workers=2)
    assert list(loader) == [pixels(i) for i in range(N)]


def test_workers_that_were_forked_ask_a_server_by_connections_of_their_own(
    stores: dict[str, Path], cache: CacheSettings, tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp")
    from torch.utils.data import DataLoader

    handler = functools.partial(_Quiet, directory=str(stores["packed"].parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        expected(Store.open(f"{url}/packed", CacheSettings(tmp_path / "other")))
        store = Store.open(f"{url}/in_place", cache)
        expected(store)
        shutil.rmtree(cache.place())
        reader: Any = _Pictures(store)
        loader = DataLoader(reader, batch_size=None, num_workers=2, timeout=60)
        assert list(loader) == [pixels(i) for i in range(N)]
        with pytest.raises(DataError, match=f"no prepared data in {url}/gone"):
            Store.open(f"{url}/gone", cache)
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Pictures:
    def __init__(self, store: Store) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, i: int) -> bytes:
        picture = self.store.picture(self.store[i])
        assert isinstance(picture, bytes)
        return picture


def test_pictures_may_be_at_a_url_of_their_own(
    tmp_path: Path, memory: MemoryFileSystem, cache: CacheSettings
) -> None:
    folder = tmp_path / "store"
    with StoreWriter(folder, image_root=tmp_path, source="x", command=COMMAND) as writer:
        writer.add(Record("a", ("deep/a.jpg",), 1, 1, source="x"))
    memory.pipe("/pictures/deep/a.jpg", b"picture")
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace(f'"{tmp_path}"', '"memory://pictures"'))
    store = Store.open(folder, cache)
    assert store.picture(store[0]) == b"picture"
    store = Store.open(upload(folder, memory), cache)
    assert store.picture(store[0]) == b"picture"


def test_a_change_of_the_store_is_seen(
    tmp_path: Path, stores: dict[str, Path], memory: MemoryFileSystem, cache: CacheSettings
) -> None:
    expected(Store.open(upload(stores["in_place"], memory, "s"), cache))
    folder = tmp_path / "other"
    with StoreWriter(folder, image_root=folder, source="x", command=COMMAND) as writer:
        writer.add(Record("new", ("0.jpg",), 1, 1, source="x"), (Encoded("0.jpg", b"new"),))
    store = Store.open(upload(folder, memory, "s"), cache)
    assert [(r.id, picture) for r, picture in content(store)] == [("new", b"new")]


# The cache


def sizes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("kind", ["packed", "in_place"])
def test_a_second_pass_asks_the_place_for_nothing(
    kind: str,
    stores: dict[str, Path],
    memory: MemoryFileSystem,
    cache: CacheSettings,
    asked: Counter[str],
) -> None:
    url = upload(stores[kind], memory)
    store = Store.open(url, cache)
    expected(store)
    assert asked["cat_file"] > 0
    asked.clear()
    expected(store)
    assert not asked
    expected(Store.open(url, cache))  # another run: the manifest, and no file of data
    assert asked["cat_file"] == 1


@pytest.mark.parametrize("kind", ["packed", "in_place"])
def test_the_cache_never_takes_more_than_its_limit(
    kind: str,
    stores: dict[str, Path],
    memory: MemoryFileSystem,
    cache: CacheSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 64 << 10)
    folder = cache.place()
    store = Store.open(upload(stores[kind], memory), CacheSettings(folder, MIB // 2))
    most = 0
    for i in [*range(N), *range(N)]:
        assert store.picture(store[i]) == pixels(i)
        most = max(most, sizes_of(folder))
    assert MIB // 4 < most <= MIB // 2
    assert BlockCache(folder, MIB).used_bytes() <= MIB // 2


def name_of(i: int, block: int = 0) -> str:
    return f"{i:064x}.{block}"


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    kept = BlockCache(tmp_path, 10 * 8192)
    for i in range(10):
        kept.write(name_of(i), bytes(8000))
        os.utime(tmp_path / "00" / name_of(i), (1000 + i, 1000 + i))
    assert kept.read(name_of(0)) is not None  # a hit makes it the newest
    kept.write(name_of(10), bytes(8000))
    there = [i for i in range(11) if kept.read(name_of(i)) is not None]
    assert there == [0, 3, 4, 5, 6, 7, 8, 9, 10]


def test_files_that_are_not_the_caches_stay(tmp_path: Path) -> None:
    mine = tmp_path / "ab" / "thesis.tex"
    mine.parent.mkdir()
    mine.write_bytes(bytes(100_000))
    os.utime(mine, (0, 0))
    kept = BlockCache(tmp_path, 50_000)
    for i in range(20):
        kept.write(name_of(i), bytes(8000))
    assert mine.exists()
    assert kept.used_bytes() <= 50_000


def test_a_cache_whose_tally_is_lost_counts_again(tmp_path: Path) -> None:
    for i in range(10):
        BlockCache(tmp_path, MIB).write(name_of(i), bytes(8000))
    (tmp_path / "xvlm-cache.tally").unlink()
    small = BlockCache(tmp_path, 5 * 8192)
    small.write(name_of(10), bytes(8000))
    assert small.used_bytes() <= 5 * 8192


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    kept = BlockCache(tmp_path, 5 * 8192)
    part = tmp_path / "00" / f"{'a' * 32}.part"
    part.parent.mkdir()
    part.write_bytes(bytes(8000))
    os.utime(part, (1, 1))
    for i in range(6):
        kept.write(name_of(i), bytes(8000))
    assert not part.exists()


def test_a_block_larger_than_the_limit_is_not_kept(tmp_path: Path) -> None:
    kept = BlockCache(tmp_path, 10_000)
    kept.write(name_of(0), bytes(8000))
    kept.write(name_of(1), bytes(20_000))
    assert kept.read(name_of(0)) == bytes(8000)
    assert kept.read(name_of(1)) is None


@pytest.mark.parametrize("kind", ["packed", "in_place"])
@pytest.mark.parametrize("keep", [0.5, 0.0])
def test_a_block_that_was_cut_off_is_fetched_again(
    kind: str, keep: float, stores: dict[str, Path], memory: MemoryFileSystem, cache: CacheSettings
) -> None:
    url = upload(stores[kind], memory)
    expected(Store.open(url, cache))
    for file in cache.place().glob("??/*"):
        os.truncate(file, int(file.stat().st_size * keep))
    expected(Store.open(url, cache))
    assert BlockCache(cache.place(), MIB).used_bytes() > N * 40_000, "and kept whole"


def test_a_cache_that_cannot_be_written_is_one_clear_line(
    tmp_path: Path, stores: dict[str, Path]
) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match="cannot write the cache") as caught:
        expected(Store.open(stores["packed"].as_uri(), CacheSettings(tmp_path / "cache")))
    assert "data.cache" in str(caught.value.try_)


def read_all(url: str, folder: Path, limit: int, block: int, results: Any) -> None:
    remote.BLOCK_BYTES = block
    store = Store.open(url, CacheSettings(folder, limit))
    results.put(all(store.picture(store[i]) == pixels(i) for _ in range(4) for i in range(N)))


def test_two_processes_share_a_cache_at_once(
    stores: dict[str, Path], cache: CacheSettings, tmp_path: Path
) -> None:
    """Which is too small for the store, so that each removes what the other reads."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    results = context.Queue()
    url, limit = stores["packed"].as_uri(), MIB // 2
    words = (url, cache.place(), limit, 64 << 10, results)
    processes = [context.Process(target=read_all, args=words) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [True, True]
    for process in processes:
        process.join()
    assert BlockCache(cache.place(), limit).used_bytes() <= limit + 3 * (68 << 10)
    assert not list(cache.place().glob("??/*.part"))


# Places that do not answer


def failing(monkeypatch: pytest.MonkeyPatch, times: int, error: Exception) -> list[int]:
    """The memory file system fails so many times, then answers."""
    plain, tries = MemoryFileSystem.cat_file, [0]

    def cat_file(self: Any, *args: Any, **options: Any) -> Any:
        tries[0] += 1
        if tries[0] <= times:
            raise error
        return plain(self, *args, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return tries


def test_a_read_that_fails_is_tried_again(
    stores: dict[str, Path],
    memory: MemoryFileSystem,
    cache: CacheSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Store.open(upload(stores["packed"], memory), cache)
    tries = failing(monkeypatch, 3, TimeoutError("slow"))
    assert store[0].id == "r0"
    assert tries == [5], "four for the index, and one block"


@pytest.mark.parametrize("error", [TimeoutError("slow\nnetwork"), RuntimeError("slow network")])
def test_a_place_that_never_answers_is_named(
    error: Exception,
    stores: dict[str, Path],
    memory: MemoryFileSystem,
    cache: CacheSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = upload(stores["packed"], memory)
    store = Store.open(url, cache)
    store.indices("val")
    tries = failing(monkeypatch, 100, error)
    with pytest.raises(DataError, match=f"{url}/shard-00000.*slow network") as caught:
        store[0]
    assert tries == [4]
    assert caught.value.exit_code == 4
    assert "\n" not in caught.value.what


def test_a_refusal_is_not_tried_again(
    stores: dict[str, Path],
    memory: MemoryFileSystem,
    cache: CacheSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Store.open(upload(stores["packed"], memory), cache)
    tries = failing(monkeypatch, 100, PermissionError("Forbidden"))
    with pytest.raises(DataError, match="cannot be read: Forbidden"):
        store[0]
    assert tries == [1]


def test_bytes_that_do_not_come_are_a_failure_and_never_kept(
    stores: dict[str, Path],
    memory: MemoryFileSystem,
    cache: CacheSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = upload(stores["in_place"], memory)
    store = Store.open(url, cache)
    record = store[0]
    plain = MemoryFileSystem.cat_file
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *a, **k: plain(*a, **k)[:-1])
    with pytest.raises(DataError, match="bytes came instead of"):
        store.picture(record)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", plain)
    assert store.picture(record) == pixels(0)


def test_a_server_that_knows_no_ranges_is_read_all_the_same(
    stores: dict[str, Path],
    memory: MemoryFileSystem,
    cache: CacheSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 64 << 10)
    plain = MemoryFileSystem.cat_file
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda self, path, **k: plain(self, path))
    expected(Store.open(upload(stores["packed"], memory), cache))


def test_files_that_vanished_are_named(
    stores: dict[str, Path], memory: MemoryFileSystem, cache: CacheSettings
) -> None:
    url = upload(stores["in_place"], memory)
    store = Store.open(url, cache)
    record = store[0]
    memory.rm(f"/stores/in_place/{record.images[0]}")
    with pytest.raises(PictureError, match="missing: memory://") as problem:
        store.picture(record)
    assert problem.value.reason == "missing"
    memory.rm("/stores/in_place/records-00001.jsonl")
    with pytest.raises(DataError, match=f"{url}/records-00001.jsonl") as caught:
        store[8]
    assert caught.value.exit_code == 4
    with pytest.raises(DataError, match=r"records-00001\.jsonl is not \d+ bytes long"):
        Store.open(url, cache)
    memory.rm("/stores/in_place/manifest.json")
    with pytest.raises(DataError, match=f"no prepared data in {url}"):
        Store.open(url, cache)


def test_a_packed_picture_that_the_file_cuts_off_is_truncated(
    stores: dict[str, Path], memory: MemoryFileSystem, cache: CacheSettings
) -> None:
    store = Store.open(upload(stores["packed"], memory), cache)
    name = store[0].images[0]
    file = name.partition("@")[0]
    for span, reason in (("0+99999999", "truncated image"), ("0+999999999999", "too large")):
        with pytest.raises(PictureError, match=reason):
            store.picture(Record("x", (f"{file}@{span}",), 1, 1))


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] in ("s3fs", "gcsfs", "aiohttp"):
            raise ImportError(f"No module named {name!r}")
        return plain(name, *args, **options)

    for name in [n for n in sys.modules if n.partition(".")[0] in ("s3fs", "gcsfs", "aiohttp")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    known = importlib.import_module("fsspec.registry")._registry
    for kind in ("s3", "gs", "http"):
        monkeypatch.delitem(known, kind, raising=False)
    for url, extra in (("s3://b/x", "s3"), ("gs://b/x", "gcs"), ("http://h/x", "http")):
        with pytest.raises(MissingToolError) as caught:
            Store.open(url)
        assert caught.value.try_ == f"pip install 'xvlm[{extra}]'"
        assert caught.value.exit_code == 7


def test_an_unknown_protocol_is_one_clear_line() -> None:
    with pytest.raises(DataError, match="no place is of the kind abacus://"):
        Store.open("abacus://bucket/store")


@pytest.mark.parametrize("url", ["zip://a.zip::s3://b/x", "http://h/x?token=1"])
def test_an_address_that_takes_no_names_is_refused(url: str, cache: CacheSettings) -> None:
    with pytest.raises(UsageError, match="is no plain folder"):
        RemoteFiles(url, cache)


def test_a_remote_store_whose_pictures_are_on_another_machine_says_so(
    tmp_path: Path, memory: MemoryFileSystem, cache: CacheSettings
) -> None:
    folder = tmp_path / "store"
    with StoreWriter(folder, image_root=tmp_path, source="x", command=COMMAND) as writer:
        writer.add(Record("a", ("a.jpg",), 1, 1, source="x"))
    with pytest.raises(DataError, match="on the machine that prepared it") as caught:
        Store.open(upload(folder, memory), cache)
    assert str(tmp_path) in caught.value.what
    assert "--pack" in str(caught.value.try_)


# Names never lead out


BAD_NAMES = [
    ("../secret.jpg", "outside the image root"),
    ("a/../../secret.jpg", "outside the image root"),
    ("/stores/secret.jpg", "absolute path"),
    ("memory://stores/secret.jpg", "a URL"),
    ("file:/etc/passwd", "a URL"),
    ("../secret.tar@0+3", "outside the image root"),
    ("a\\..\\secret.jpg", "outside the image root"),
    ("", "not a file name"),
]


@pytest.mark.parametrize(("name", "reason"), BAD_NAMES)
def test_no_name_leads_out_of_a_remote_store(
    name: str,
    reason: str,
    stores: dict[str, Path],
    memory: MemoryFileSystem,
    cache: CacheSettings,
    asked: Counter[str],
) -> None:
    store = Store.open(upload(stores["in_place"], memory), cache)
    memory.pipe("/stores/secret.jpg", b"secret")
    memory.pipe("/stores/secret.tar", b"secret")
    asked.clear()
    with pytest.raises(PictureError) as caught:
        store.picture(Record("x", (name,), 1, 1))
    assert caught.value.reason == reason
    assert not asked


@pytest.mark.skipif(os.name == "nt", reason="links need rights")
@pytest.mark.parametrize("name", ["pictures/link.jpg", "pictures/folder/secret.jpg"])
def test_no_link_leads_out_of_a_store_at_file(
    name: str, stores: dict[str, Path], tmp_path: Path, cache: CacheSettings
) -> None:
    folder = shutil.copytree(stores["in_place"], tmp_path / "store")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (folder / "pictures" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "pictures" / "folder").symlink_to(tmp_path)
    store = Store.open(folder.as_uri(), cache)
    with pytest.raises(PictureError, match="outside the image root"):
        store.picture(Record("x", (name,), 1, 1))


def test_http_names_are_quoted_so_that_servers_read_no_dots_in_them(cache: CacheSettings) -> None:
    pytest.importorskip("aiohttp")
    files = RemoteFiles("http://host/stores", cache)
    assert files._url("%2e%2e/a?b#c.jpg") == "http://host/stores/%252e%252e/a%3Fb%23c.jpg"


@pytest.mark.parametrize(
    ("what", "by"),
    [
        ('"image_root": "."', '"image_root": "../.."'),
        ('"file": "records-00000.jsonl"', '"file": "../secret.jsonl"'),
    ],
)
def test_no_manifest_leads_out_of_a_remote_store(
    what: str, by: str, stores: dict[str, Path], memory: MemoryFileSystem, cache: CacheSettings
) -> None:
    url = upload(stores["in_place"], memory)
    path = "/stores/in_place/manifest.json"
    text = memory.cat_file(path).decode()
    assert what in text
    memory.pipe(path, text.replace(what, by).encode())
    with pytest.raises(DataError, match="outside"):
        Store.open(url, cache)


# Places


def test_an_address_is_joined_as_one() -> None:
    assert store_place("s3://bucket/stores/", "coco") == "s3://bucket/stores/coco"
    assert store_place("data", "coco") == Path("data/coco")
    assert as_place("gs://b/x/") == "gs://b/x"
    assert as_place("data/x") == Path("data/x")
    assert not is_url("c://data")


def test_no_more_files_stay_open_than_allowed(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    for i in range(200):
        (tmp_path / str(i)).write_bytes(b"%d" % i)
        assert files.read(str(i), 0, 9) == b"%d" % i
    assert len(files._handles) <= 128


def test_parts_are_counted_only_of_ours() -> None:
    assert block_cache._OURS.fullmatch(name_of(1))
    assert not block_cache._OURS.fullmatch("thesis.part")
