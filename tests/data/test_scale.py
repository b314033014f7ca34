"""Ten million records (index only): start, seek, memory; and the same steps for any ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from xvlm_core.data.manifest import INDEX_DTYPE, Manifest, Shard
from xvlm_core.data.records import SCHEMA_VERSION, Record
from xvlm_core.data.store import Store, StoreWriter
from xvlm_core.data.stream import Place, Stream
from xvlm_core.train.feeding import feed_from

N = 10_000_000
A_SHARD = 5_000
LINE = 200


def make_store(folder: Path, *, mixed: bool, a_shard: int = A_SHARD) -> Path:
    """A store whose records take no room: sparse files of the right size, and real indexes."""
    rows = np.zeros(a_shard, INDEX_DTYPE)
    rows["offset"], rows["length"] = np.arange(a_shard) * LINE, LINE - 1
    rows["split"] = (np.arange(a_shard) % 7 == 0) if mixed else 0
    splits = {"train": int((rows["split"] == 0).sum()), "val": int((rows["split"] == 1).sum())}
    splits = {name: n for name, n in splits.items() if n}
    folder.mkdir()
    np.save(folder / "records-00000.idx.npy", rows)
    shards = []
    for number in range(N // a_shard):
        file, index = f"records-{number:05d}.jsonl", f"records-{number:05d}.idx.npy"
        if number:
            os.link(folder / "records-00000.idx.npy", folder / index)
        (folder / file).touch()
        os.truncate(folder / file, a_shard * LINE)
        shards.append(
            Shard(
                file=file,
                index=index,
                records=a_shard,
                bytes=a_shard * LINE,
                splits=splits,
                sha256="",
                index_sha256="",
            )
        )
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        source="made up",
        command="x",
        image_root="/",
        records=N,
        splits={name: n * len(shards) for name, n in splits.items()},
        counts={},
        shards=tuple(shards),
        checksums={},
        fingerprint="",
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


MEASURE = """
import json, resource, sys, time
from pathlib import Path
from xvlm_core.data.store import Store
from xvlm_core.data.stream import Stream

start = time.perf_counter()
store = Store.open(Path(sys.argv[1]))
stream = Stream([store.numbers("train")], 1024, 0, name="images")
first = stream.places(1)
seconds = {"start": time.perf_counter() - start}
for step in (2, 9_000, 123_456, 10_000_000, 3):
    start = time.perf_counter()
    places = stream.places(step)
    seconds[str(step)] = time.perf_counter() - start
    assert len(places) == len(set(places)) == 1024
status = Path("/proc/self/status")
if status.is_file():  # ru_maxrss remembers the process that started this one
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    mebibytes = int(line.split()[1]) / (1 << 10)
else:
    mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
print(json.dumps({"seconds": seconds, "mebibytes": mebibytes, "records": stream.records}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="measures with the resource module")
@pytest.mark.parametrize("mixed", [False, True], ids=["one split", "two splits"])
@pytest.mark.parametrize("a_shard", [1_000, 5_000])
def test_ten_million_records_start_and_seek_in_no_time(
    tmp_path: Path, mixed: bool, a_shard: int
) -> None:
    folder = make_store(tmp_path / "store", mixed=mixed, a_shard=a_shard)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["records"] == sum(1 for i in range(a_shard) if not mixed or i % 7) * N // a_shard
    assert max(found["seconds"].values()) < 5, found  # on a busy machine, too
    assert found["mebibytes"] < 200, found


def test_an_index_that_another_numpy_wrote_is_read_the_same(tmp_path: Path) -> None:
    items = [Record(str(i), ("a.png",), 8, 8, split="ab"[i % 2]) for i in range(9)]
    with StoreWriter(tmp_path / "s", image_root=tmp_path, source="x", command="x") as writer:
        for item in items:
            writer.add(item)
    path = tmp_path / "s" / "records-00000.idx.npy"
    rows = np.load(path)
    with path.open("wb") as file:
        np.lib.format.write_array(file, rows, version=(2, 0))
    assert Store.open(tmp_path / "s").indices("b").tolist() == [1, 3, 5, 7]


# ---------------------------------------------------------------------- any ranks, any workers


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Store]:
    """Two small stores of 70 and 45 records in shards of 9."""
    root = tmp_path_factory.mktemp("stores")
    Image.new("RGB", (8, 8)).save(root / "a.png")
    for name, n in (("a", 70), ("b", 45)):
        with StoreWriter(
            root / name, image_root=root, source="x", command="x", shard_records=9
        ) as writer:
            for i in range(n):
                split = "val" if i % 5 == 4 else "train"
                writer.add(Record(f"{name}{i}", ("a.png",), 8, 8, ("text",), split=split))
    return [Store.open(root / name) for name in ("a", "b")]


class Ids:
    """A feed whose batches are the ids of the records of a part."""

    steps_per_epoch = 1

    def __init__(self, stores: list[Store], parts: int) -> None:
        self.stores = stores
        self.stream = Stream(
            [store.numbers("train") for store in stores],
            24,
            7,
            name="images",
            parts=parts,
            block=4,
        )

    def batches(self, step: int, part: int = 0) -> tuple[list[str], ...]:
        places: tuple[Place, ...] = self.stream.places(step, part)
        return ([self.stores[place.store][place.record].id for place in places],)


def ids_of(stores: list[Store], world_size: int, workers: int, steps: int) -> list[Counter[str]]:
    found: list[Counter[str]] = [Counter() for _ in range(steps)]
    for rank in range(world_size):
        own = range(rank, rank + 1)
        feed = feed_from(Ids(stores, world_size), 1, workers, own)  # type: ignore[arg-type]
        try:
            for step in range(steps):
                found[step].update(next(feed)[0][0])  # type: ignore[arg-type]
        finally:
            feed.close()
    return found


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_a_step_has_the_same_records_for_any_ranks_and_workers(
    stores: list[Store], world_size: int, workers: int
) -> None:
    steps = 9  # a pass is 92 records: four steps
    if workers and world_size == 8:
        steps = 5  # eight times the processes
    expected = ids_of(stores, 1, 0, steps)
    assert all(sum(ids.values()) == 24 for ids in expected)
    assert len(set(map(str, expected))) == steps, "steps differ"
    assert ids_of(stores, world_size, workers, steps) == expected


def test_a_pass_has_every_record_once(stores: list[Store]) -> None:
    found = sum(ids_of(stores, 1, 0, 23), Counter[str]())  # 552 records: six passes of 92
    assert set(found.values()) == {6}
    assert len(found) == 92
