"""Stores: what is written is what is read, whatever it is; what is damaged is noticed."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties.cases import cases
from xvlm_core.data.manifest import Manifest
from xvlm_core.data.records import (
    REGION_KINDS,
    Answer,
    Question,
    Record,
    RecordError,
    Region,
    Statement,
    record_from_json,
)
from xvlm_core.data.shard_writer import Encoded
from xvlm_core.data.store import Store, StoreWriter
from xvlm_core.data.stream import Stream
from xvlm_core.errors import DataError

odd_texts = st.sampled_from(
    ["", "\n", "\u2028", "\x00", "\x85", "\ufeff", '"', "\\", "🦓", "\r\n", "{}"]
)
texts = st.one_of(st.text(max_size=12), odd_texts)
numbers = st.floats(allow_nan=False, allow_infinity=False)
boxes = st.tuples(numbers, numbers, numbers, numbers)
few = {"max_size": 3}
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | numbers | texts,
    lambda inner: st.lists(inner, **few) | st.dictionaries(texts, inner, **few),
    max_leaves=6,
)


def tuples(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(strategy, **few).map(tuple)


answers = st.builds(Answer, texts, st.floats(0, 1))
paths = texts.filter(bool)
records = st.builds(
    Record,
    id=st.text(min_size=1, max_size=8),
    images=st.one_of(st.tuples(paths), st.tuples(paths, paths)),
    width=st.integers(1, 2**31),
    height=st.integers(1, 2**31),
    captions=tuples(texts),
    regions=tuples(st.builds(Region, texts, boxes, st.sampled_from(REGION_KINDS))),
    absent=tuples(texts),
    questions=tuples(st.builds(Question, texts, texts, tuples(answers))),
    proposals_xyxy_px=tuples(boxes),
    statement=st.none() | st.builds(Statement, texts, st.none() | st.booleans()),
    split=st.sampled_from(["train", "val", "test", "détail", "a b", ""]),
    source=texts,
    same_as=tuples(texts),
    meta=st.dictionaries(texts, plain, **few),
)
lists_of_records = st.lists(records, min_size=1, max_size=9, unique_by=lambda record: record.id)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of one property; each input makes a folder of its own in it."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def written(
    place: Path, items: list[Record], pictures: list[tuple[Encoded, ...]], **settings: Any
) -> Store:
    folder = Path(tempfile.mkdtemp(dir=place)) / "store"
    settings = {"image_root": folder, "source": "test", "command": "xvlm ...", **settings}
    with StoreWriter(folder, **settings) as writer:
        for record, encoded in zip(items, pictures, strict=True):
            writer.add(record, encoded)
    return Store.open(folder)


def same(found: Record, expected: Record) -> bool:
    """Equal in every figure's type too: 1 is not 1.0."""
    return found == expected and found.to_line() == expected.to_line()


@cases(120)
@given(lists_of_records, st.integers(1, 4))
def test_records_are_read_as_they_were_written_in_their_order(
    place: Path, items: list[Record], shard_records: int
) -> None:
    nothing: list[tuple[Encoded, ...]] = [()] * len(items)
    store = written(place, items, nothing, image_root=place, shard_records=shard_records)
    assert len(store) == len(items)
    assert all(same(store[i], record) for i, record in enumerate(items))
    store.verify()
    again = pickle.loads(pickle.dumps(store))
    assert [again[i] for i in reversed(range(len(items)))] == items[::-1]
    assert len(store.manifest.shards) == -(-len(items) // shard_records)

    splits = {record.split for record in items}
    parts = {split: store.indices(split).tolist() for split in splits}
    assert sorted(chain.from_iterable(parts.values())) == list(range(len(items)))
    for split, part in parts.items():
        assert part == [i for i, record in enumerate(items) if record.split == split]
    assert store.manifest.splits == {split: len(part) for split, part in parts.items()}
    assert store.indices("no such split").tolist() == []
    assert store.indices().tolist() == list(range(len(items)))


@cases(80)
@given(lists_of_records, st.integers(1, 4), st.booleans(), st.data())
def test_pictures_are_read_byte_for_byte(
    place: Path, items: list[Record], shard_records: int, packed: bool, data: st.DataObject
) -> None:
    kinds = st.sampled_from(["JPEG", "PNG", "PPM"])
    pictures = [
        tuple(
            Encoded(f"{i}-{which}.bin", data.draw(st.binary(min_size=1, max_size=600)), kind)
            for which, kind in enumerate(data.draw(st.tuples(*[kinds] * len(record.images))))
        )
        for i, record in enumerate(items)
    ]
    store = written(place, items, pictures, packed=packed, shard_records=shard_records)
    store.verify()
    for found, record, encoded in zip(store, items, pictures, strict=True):
        assert same(dataclasses.replace(found, images=record.images), record)
        for which, picture in enumerate(encoded):
            source = store.picture(found, which)
            assert (source if isinstance(source, bytes) else source.read_bytes()) == picture.data
    if packed:  # any reader of tar files finds the same in it
        members = []
        for shard in store.manifest.shards:
            with tarfile.open(store.folder / shard.file) as tar:
                members += [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
        assert [d for name, d in members if not name.endswith(".json")] == [
            picture.data for encoded in pictures for picture in encoded
        ]
        lines = [json.loads(d) for name, d in members if name.endswith(".json")]
        assert [line["id"] for line in lines] == [record.id for record in items]


@cases(40)
@given(lists_of_records, st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_the_bytes_depend_on_the_records_alone(
    place: Path, items: list[Record], shard_records: int, others: int, packed: bool
) -> None:
    settings = {"shard_records": shard_records, "packed": packed}
    nothing: list[tuple[Encoded, ...]] = [()] * len(items)
    one, two = (written(place, items, nothing, **settings) for _ in range(2))
    assert one.manifest == two.manifest
    names = sorted(path.name for path in one.folder.iterdir())
    assert names == sorted(path.name for path in two.folder.iterdir())
    for name in names:
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()
    different = written(place, items, nothing, packed=packed, shard_records=others)
    same_shards = [s.records for s in one.manifest.shards] == [
        s.records for s in different.manifest.shards
    ]
    assert (one.manifest.fingerprint == different.manifest.fingerprint) == same_shards


# ------------------------------------------------------------------------------ damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Two stores, by whether they are packed."""
    items = [
        Record(
            f"r{i}",
            ("a.jpg",),
            40,
            30,
            captions=(f"a dog {i}", "🦓"),
            regions=(Region("it", (1.5, 2.0, 30.0, 4.0)),),
            questions=(Question("q", "what?", (Answer("dog", 0.3),)),),
            split="val" if i % 3 else "train",
            same_as=(f"coco:{i}",),
            meta={"i": i},
        )
        for i in range(6)
    ]
    folders = {}
    for packed in (False, True):
        folder = tmp_path_factory.mktemp("whole") / "store"
        with StoreWriter(
            folder,
            image_root=folder,
            source="test",
            command="xvlm prepare-data test -o store",
            shard_records=4,
            packed=packed,
        ) as writer:
            for i, record in enumerate(items):
                picture = Encoded(f"{i}.png", b"picture %d" % i, "PNG")
                writer.ledger.read("line")
                writer.ledger.drop("line", f"a:{i}", "not JSON", "x")
                writer.add(record, (picture,) if packed else ())
        folders[packed] = folder
    return folders


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def verified(folder: Path) -> Manifest | None:
    """The manifest, if the store is opened and verified; None if it says that it is damaged."""
    try:
        store = Store.open(folder)
        store.verify()
    except DataError:
        return None
    return store.manifest


@cases(300)
@given(st.booleans(), st.data(), st.integers(1, 255))
def test_one_changed_byte_of_any_file_is_noticed(
    whole: dict[bool, Path], packed: bool, data: st.DataObject, bits: int
) -> None:
    folder = whole[packed]
    before = verified(folder)
    assert before is not None
    path = folder / data.draw(st.sampled_from(files_of(folder)))
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    changed = content[:at] + bytes([content[at] ^ bits]) + content[at + 1 :]
    try:
        path.write_bytes(changed)
        after = verified(folder)
        # Between the values of the manifest white space may be any.
        assert after is None or (path.name == "manifest.json" and after == before)
        with suppress(DataError):  # and nothing else
            store = Store.open(folder)
            store.indices("val")
            list(store)
    finally:
        path.write_bytes(content)


@cases(60)
@given(st.booleans(), st.data(), st.binary(max_size=3))
def test_files_that_are_cut_longer_or_gone_are_noticed(
    whole: dict[bool, Path], packed: bool, data: st.DataObject, more: bytes
) -> None:
    folder = whole[packed]
    path = folder / data.draw(st.sampled_from(files_of(folder)))
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content) - 1))
    try:
        path.write_bytes(content[:cut] + (more if content[cut:] != more else b""))
        assert verified(folder) is None
        path.unlink()
        assert verified(folder) is None
    finally:
        path.write_bytes(content)
    assert verified(folder) is not None


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, **few),
    max_leaves=6,
)


def places_of(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside a value."""
    yield at
    pairs = value.items() if isinstance(value, dict) else ()
    pairs = enumerate(value) if isinstance(value, list) else pairs
    for key, inner in pairs:
        yield from places_of(inner, (*at, key))


FULL = Record(
    "r",
    ("a.jpg",),
    40,
    30,
    captions=("a dog",),
    regions=(Region("it", (1.5, 2.0, 30.0, 4.0)),),
    absent=("a cat",),
    questions=(Question("q", "what?", (Answer("dog", 0.3),)),),
    proposals_xyxy_px=((0.0, 0.0, 1.0, 1.0),),
    statement=Statement("two dogs", True),
    same_as=("coco:1",),
    meta={"i": 1},
)


wrong_values = st.sampled_from([10**400, -1, True, None, "1", [], {}, float("nan")])


@cases(300)
@given(st.data(), st.one_of(wrong_values, anything))
def test_any_json_is_a_record_or_has_a_reason(data: st.DataObject, other: object) -> None:
    value = json.loads(FULL.to_line())
    assert record_from_json(value) == FULL
    at = data.draw(st.sampled_from(list(places_of(value))))
    root = [value]
    inner: Any = root
    for step in (0, *at)[:-1]:
        inner = inner[step]
    inner[(0, *at)[-1]] = other
    try:
        found = record_from_json(root[0])
    except RecordError:
        return
    again = record_from_json(json.loads(found.to_line()))
    assert again.to_line() == found.to_line()
    assert type(found.width) is type(found.height) is int
    assert all(isinstance(a.weight, float) for q in found.questions for a in q.answers)
    assert found.statement is None or found.statement.label in (None, True, False)


@cases(40)
@given(lists_of_records, st.integers(0, 8), st.sampled_from(["id", "text"]))
def test_a_refused_store_leaves_nothing_behind(
    place: Path, items: list[Record], at: int, wrong: str
) -> None:
    at = min(at, len(items) - 1)
    if wrong == "id":
        items = [*items, dataclasses.replace(items[at], split="other")]
    else:
        items[at] = dataclasses.replace(items[at], captions=("a\ud800",))
    with pytest.raises(DataError):
        written(place, items, [()] * len(items), shard_records=2)
    assert not any(any(folder.iterdir()) for folder in place.iterdir() if folder.is_dir())
    shutil.rmtree(next(place.iterdir()))


# ------------------------------------------------------------------------------ the stream


@cases(100)
@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=4).filter(any),
    st.integers(1, 6),
    st.sampled_from([1, 2, 3, 4, 6]),
    st.integers(0, 2**62),
    st.integers(1, 40),
    st.integers(1, 3),
)
def test_parts_share_each_step_and_each_pass_has_every_record_once(
    sizes: list[int], share: int, parts: int, seed: int, block: int, passes: int
) -> None:
    numbers = [np.arange(size) * 3 + store for store, size in enumerate(sizes)]
    batch = share * parts
    alone = Stream(numbers, batch, seed, name="pictures", block=block)
    shared = Stream(numbers, batch, seed, name="pictures", block=block, parts=parts)
    total = sum(sizes)
    steps = -(-total * passes // batch)
    seen = []
    for step in range(1, steps + 1):
        places = alone.places(step)
        assert len(places) == batch
        joined = [place for part in range(parts) for place in shared.places(step, part)]
        assert joined == list(places)
        seen += places
    everything = sorted((store, int(n)) for store, some in enumerate(numbers) for n in some)
    for number in range(passes):
        one_pass = seen[number * total : (number + 1) * total]
        assert {place.epoch for place in one_pass} == {number}
        assert sorted((place.store, place.record) for place in one_pass) == everything
    later = Stream(numbers, batch, seed, name="pictures", block=block)
    assert later.places(steps) == alone.places(steps), "nothing is remembered"
