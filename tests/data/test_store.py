from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from xvlm_core.data import shard_writer
from xvlm_core.data.images import PictureError
from xvlm_core.data.records import Record, Region, Statement
from xvlm_core.data.shard_writer import Encoded
from xvlm_core.data.store import Store, StoreWriter
from xvlm_core.errors import DataError, OutputError

COMMAND = "xvlm prepare-data jsonl --images pictures -o store"


def records(n: int) -> list[Record]:
    return [
        Record(
            id=f"record {i}",
            images=("a.jpg",),
            width=4,
            height=3,
            captions=("a café\u2028ñ",) * (i % 3),
            regions=(Region("a dog", (0.0, 0.5, 2.0, 3.0)),),
            split="val" if i % 4 == 1 else "train",
            source="test",
            meta={"i": i},
        )
        for i in range(n)
    ]


def write(folder: Path, items: Iterable[Record], **options: object) -> StoreWriter:
    settings = {"image_root": folder.parent, "source": "test", "command": COMMAND, **options}
    with StoreWriter(folder, **settings) as writer:  # type: ignore[arg-type]
        for record in items:
            writer.add(record)
    return writer


@pytest.mark.parametrize("shard_records", [1, 3, 4, 100])
def test_records_come_back_as_they_went_in(tmp_path: Path, shard_records: int) -> None:
    written = records(10)
    write(tmp_path / "store", written, shard_records=shard_records)
    store = Store.open(tmp_path / "store")
    assert len(store) == 10
    assert [store[i] for i in range(len(store))] == written
    assert store.name == "store"
    store.verify()


@pytest.mark.parametrize("shard_records", [3, 100])
def test_indices_of_a_split_are_those_of_its_records(tmp_path: Path, shard_records: int) -> None:
    written = records(10)
    write(tmp_path / "store", written, shard_records=shard_records)
    store = Store.open(tmp_path / "store")
    for split in ("train", "val"):
        expected = [i for i, record in enumerate(written) if record.split == split]
        assert store.indices(split).tolist() == expected
        assert store.manifest.splits[split] == len(expected)
    assert store.indices("test").tolist() == []
    assert store.indices(None).tolist() == list(range(10))
    assert store.indices("val").dtype == np.int64


def test_indices_read_no_record(tmp_path: Path) -> None:
    write(tmp_path / "store", records(10))
    store = Store.open(tmp_path / "store")
    (tmp_path / "store" / "records-00000.jsonl").unlink()
    assert len(store.indices("val")) == 3


def test_out_of_range_is_an_index_error_so_that_iteration_ends(tmp_path: Path) -> None:
    write(tmp_path / "store", records(3))
    store = Store.open(tmp_path / "store")
    for i in (-1, 3):
        with pytest.raises(IndexError):
            store[i]


def test_a_pickled_store_is_small_and_reads_the_same(tmp_path: Path) -> None:
    write(tmp_path / "store", records(500))
    store = Store.open(tmp_path / "store")
    first = store[0]
    data = pickle.dumps(store)
    assert len(data) < 5000
    assert pickle.loads(data)[0] == first


def test_the_manifest_says_what_is_there_and_the_ledger_is_filled_in(tmp_path: Path) -> None:
    writer = write(tmp_path / "store", records(10))
    manifest = Store.open(tmp_path / "store").manifest
    assert manifest == writer.manifest
    assert manifest.records == 10
    assert manifest.command == COMMAND
    assert manifest.counts["picture"]["read"] == 10
    assert manifest.counts["caption"]["kept"] == sum(i % 3 for i in range(10))
    assert manifest.counts["region"]["kept"] == 10
    json.loads((tmp_path / "store" / "manifest.json").read_text())


def test_equal_data_gives_equal_bytes_and_fingerprint(tmp_path: Path) -> None:
    one = write(tmp_path / "one", records(5)).manifest.fingerprint
    two = write(tmp_path / "two", records(5), command="other").manifest.fingerprint
    other = write(tmp_path / "three", records(6)).manifest.fingerprint
    assert one == two != other
    for name in ("records-00000.jsonl", "records-00000.idx.npy", "ledger.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_pictures_inside_the_store_move_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with StoreWriter(folder, image_root=folder, source="test", command=COMMAND) as writer:
        writer.add(records(1)[0], (Encoded("a.jpg", b"picture"),))
    os.rename(folder, tmp_path / "moved")
    store = Store.open(tmp_path / "moved")
    assert store.picture(store[0]) == tmp_path / "moved" / "pictures" / "a.jpg"
    assert (tmp_path / "moved" / "pictures" / "a.jpg").read_bytes() == b"picture"


def test_picture_path_stays_inside_the_image_root(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "outside.jpg").write_bytes(b"")
    (tmp_path / "pictures" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    bad = Record("x", ("../outside.jpg", "link.jpg"), 1, 1, statement=Statement("a"))
    write(tmp_path / "store", [bad], image_root=tmp_path / "pictures")
    store = Store.open(tmp_path / "store")
    for which in (0, 1):
        with pytest.raises(PictureError, match="outside the image root"):
            store.picture(store[0], which)


# Refusals before any work


def test_a_folder_that_is_not_empty_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not empty") as caught:
        StoreWriter(tmp_path / "store", image_root=tmp_path, source="x", command="x")
    assert caught.value.try_ == "--overwrite"
    assert [p.name for p in tmp_path.rglob("*")] == ["store", "mine.txt"]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    write(tmp_path / "store", records(2))
    assert len(Store.open(tmp_path / "store")) == 2


def test_overwrite_replaces_a_store_and_leaves_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "store", records(9), shard_records=2)
    write(tmp_path / "store", records(2), overwrite=True)
    assert len(Store.open(tmp_path / "store")) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    assert not (tmp_path / "store" / "records-00001.jsonl").exists()


def test_overwrite_never_deletes_a_folder_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("mine")
    with pytest.raises(OutputError, match="not a prepared store"):
        write(tmp_path / "photos", records(1), overwrite=True)
    assert (tmp_path / "photos" / "a.jpg").read_text() == "mine"


def test_overwrite_never_deletes_the_pictures_to_be_read(tmp_path: Path) -> None:
    write(tmp_path / "store", records(1))
    (tmp_path / "store" / "pictures").mkdir()
    with pytest.raises(OutputError, match="would delete the pictures"):
        write(
            tmp_path / "store",
            records(1),
            overwrite=True,
            image_root=tmp_path / "store" / "pictures",
        )


# All or nothing


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), DataError("no")])
def test_after_any_exception_nothing_is_left(tmp_path: Path, error: BaseException) -> None:
    def interrupted() -> Iterator[Record]:
        yield records(1)[0]
        raise error

    with pytest.raises(type(error)):
        write(tmp_path / "store", interrupted())
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_leaves_the_old_store(tmp_path: Path) -> None:
    write(tmp_path / "store", records(3))
    with pytest.raises(DataError):
        write(tmp_path / "store", [*records(2), records(1)[0]], overwrite=True)
    store = Store.open(tmp_path / "store")
    store.verify()
    assert len(store) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_an_overwrite_that_cannot_move_into_place_puts_the_old_store_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "store", records(3))
    rename = os.rename

    def refuse_new(source: Path, target: Path) -> None:
        if source.name.endswith(".partial"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(target))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse_new)
    with pytest.raises(OutputError, match="Permission denied"):
        write(tmp_path / "store", records(5), overwrite=True)
    assert len(Store.open(tmp_path / "store")) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shard_writer, "sync", full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        write(tmp_path / "store", records(3))
    assert str(tmp_path / "store") in caught.value.what
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX")
@pytest.mark.parametrize("what", ["add", "ledger"])
def test_a_write_that_the_system_refuses_leaves_nothing(tmp_path: Path, what: str) -> None:
    code = f"""
import resource, sys
from pathlib import Path
from xvlm_core.data.records import Record
from xvlm_core.data.store import StoreWriter
from xvlm_core.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
root = Path(sys.argv[1])
try:
    with StoreWriter(root / "store", image_root=root, source="x", command="x") as writer:
        for i in range(100_000):
            if {what!r} == "add":
                writer.add(Record(str(i), ("a.jpg",), 1, 1))
            else:
                writer.ledger.drop("picture", str(i), "missing")
except OutputError as error:
    print(error.what)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"cannot write {tmp_path / 'store'}: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_read_only_place_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(path: Path, *args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match=os.strerror(number)):
        write(tmp_path / "store", records(1))
    assert list(tmp_path.iterdir()) == []


def test_the_same_id_twice_is_refused_naming_it(tmp_path: Path) -> None:
    same = [*records(3), records(3)[1], records(3)[2]]
    with pytest.raises(DataError, match="records with the same id: record 1, record 2"):
        write(tmp_path / "store", same)
    assert list(tmp_path.iterdir()) == []


def test_text_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Unicode"):
        write(tmp_path / "store", [Record("x", ("a.jpg",), 1, 1, captions=("\ud800",))])


def test_counts_that_do_not_match_what_was_written_are_our_bug(tmp_path: Path) -> None:
    def count(read: int, kept: int) -> None:
        with StoreWriter(
            tmp_path / "store", image_root=tmp_path, source="x", command="x"
        ) as writer:
            writer.ledger.read("picture", read)
            writer.ledger.keep("picture", kept)
            writer.add(records(1)[0])

    with pytest.raises(AssertionError, match="picture: 2 counted as kept, 1 written"):
        count(read=2, kept=2)
    with pytest.raises(AssertionError, match="read 2 != kept 1"):
        count(read=2, kept=1)
    assert list(tmp_path.iterdir()) == []


# Damage


def test_a_missing_store_names_the_command_that_prepares_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prepared data") as caught:
        Store.open(tmp_path / "coco")
    assert caught.value.try_ is not None
    assert caught.value.try_.startswith("xvlm prepare-data")
    assert str(tmp_path / "coco") in caught.value.try_


def damage_truncate(folder: Path) -> None:
    path = folder / "records-00000.jsonl"
    path.write_bytes(path.read_bytes()[:-10])


def damage_no_index(folder: Path) -> None:
    (folder / "records-00000.idx.npy").unlink()


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


@pytest.mark.parametrize("damage", [damage_truncate, damage_no_index, damage_manifest])
def test_damage_is_seen_when_opened(tmp_path: Path, damage: object) -> None:
    write(tmp_path / "store", records(5))
    damage(tmp_path / "store")  # type: ignore[operator]
    with pytest.raises(DataError, match="is damaged") as caught:
        Store.open(tmp_path / "store")
    assert caught.value.try_ is not None
    assert caught.value.try_.endswith("--overwrite")


def test_another_schema_version_is_named(tmp_path: Path) -> None:
    write(tmp_path / "store", records(1))
    path = tmp_path / "store" / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 99'))
    with pytest.raises(DataError, match="schema version 99"):
        Store.open(tmp_path / "store")


def test_changed_bytes_are_seen_by_verify_and_where_they_matter(tmp_path: Path) -> None:
    write(tmp_path / "store", records(5))
    path = tmp_path / "store" / "records-00000.jsonl"
    path.write_bytes(b"x" + path.read_bytes()[1:])
    store = Store.open(tmp_path / "store")
    with pytest.raises(DataError, match=r"checksums differ: records-00000\.jsonl"):
        store.verify()
    with pytest.raises(DataError, match=r"record 0 in .* is not a record"):
        store[0]
    assert store[1].id == "record 1"


@pytest.mark.parametrize("content", [b"junk", None])
def test_a_wrong_index_is_damage_and_never_unpickled(tmp_path: Path, content: bytes | None) -> None:
    write(tmp_path / "store", records(5))
    path = tmp_path / "store" / "records-00000.idx.npy"
    if content is None:
        np.save(path, np.array([object()]), allow_pickle=True)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match="is not an index"):
        Store.open(tmp_path / "store").indices("train")


def test_reading_imports_no_torch() -> None:
    code = "import sys, xvlm_core.data.store, xvlm_core.data.stream; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("change", ["file", "index", "records", "unknown key"])
def test_a_manifest_that_leads_astray_is_damaged(tmp_path: Path, change: str) -> None:
    write(tmp_path / "store", records(3))
    path = tmp_path / "store" / "manifest.json"
    manifest = json.loads(path.read_text())
    if change == "records":
        manifest["records"] = 10
    elif change == "unknown key":
        manifest["of_another_program"] = 1
    else:
        name = manifest["shards"][0][change]
        (tmp_path / name).write_bytes((tmp_path / "store" / name).read_bytes())
        manifest["shards"][0][change] = f"../{name}"
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="damaged"):
        Store.open(tmp_path / "store")
