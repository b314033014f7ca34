from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from xvlm_core.data.images import read_picture
from xvlm_core.data.store import Store
from xvlm_core.errors import DataError, MissingToolError, OutputError, UsageError
from xvlm_core.sources import convert, engines
from xvlm_core.sources.prepare import prepare

N = 47


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def mine(tmp_path: Path) -> dict[str, Any]:
    """47 pictures of many kinds and sizes, each with a caption, boxes and something wrong."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for i in range(N):
        kind = ("jpg", "png", "webp", "gif")[i % 4]
        width, height = int(rng.integers(20, 200)), int(rng.integers(20, 200))
        pixels = rng.integers(0, 255, (height, width, 3), np.uint8)
        exif = Image.Exif()
        if kind == "jpg" and i % 8 == 0:
            exif[0x0112] = 6
        Image.fromarray(pixels).save(folder / f"{i}.{kind}", exif=exif)
        regions = [
            {"text": f"thing {i}", "box": [1, 2, 15, 16], "kind": "object"},
            {"text": f"a thing {i} here", "box": [0, 0, 10, 10], "kind": "region"},
            {"text": f"A thing {i}, here!", "box": [5, 5, 19, 19], "kind": "region"},
            {"text": "outside", "box": [-1, 0, 10, 10]},
        ]
        record = {"id": f"r{i}", "image": f"{i}.{kind}", "captions": [f"picture {i}", "..."]}
        lines.append(json.dumps({**record, "regions": regions, "split": ("train", "val")[i % 2]}))
        if i % 9 == 0:
            lines.append("{broken")
    lines.append(json.dumps({"image": "gone.jpg", "text": "a missing picture"}))
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    return {
        "annotations": [tmp_path / "mine.jsonl"],
        "images": folder,
        "max_text_overlap": 0.75,
        "shard_records": 5,
    }


def made(mine: Mapping[str, Any], folder: Path, **options: object) -> dict[str, bytes]:
    prepare("jsonl", folder, {**mine, **options}, command="x")
    store = Store.open(folder)
    store.verify()
    assert len(store) == N
    return files_of(folder)


@pytest.mark.parametrize("packing", [{}, {"pack": True}, {"pack": True, "resize": 64}], ids=str)
def test_the_bytes_do_not_depend_on_the_number_of_processes(
    mine: dict[str, Any], tmp_path: Path, packing: dict[str, Any]
) -> None:
    first = made(mine, tmp_path / "1", workers=1, **packing)
    assert len([name for name in first if name.endswith(".idx.npy")]) == 10
    for workers in (2, 4):
        assert made(mine, tmp_path / str(workers), workers=workers, **packing) == first


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_the_bytes_are_the_same_on_ray(mine: dict[str, Any], tmp_path: Path) -> None:
    first = made(mine, tmp_path / "here", workers=1, pack=True, resize=64)
    assert made(mine, tmp_path / "ray", engine="ray", workers=2, pack=True, resize=64) == first


def test_without_ray_it_says_what_to_install(
    mine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingToolError) as caught:
        prepare("jsonl", tmp_path / "s", {**mine, "engine": "ray"}, command="x")
    assert caught.value.try_ == "pip install 'xvlm[ray]'"


def interrupted(
    mine: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """A run that stops (as by Ctrl-C) when ``after`` shards are done."""
    write_shard = convert.write_shard

    def write_some(settings: Any, number: int, events: Any) -> Any:
        if number == after:
            raise KeyboardInterrupt
        return write_shard(settings, number, events)

    with monkeypatch.context() as patch:
        patch.setattr(convert, "write_shard", write_some)
        with pytest.raises(KeyboardInterrupt):
            prepare("jsonl", folder, {**mine, "workers": 1}, command="x")
    assert not folder.exists()


def numbers_written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    written: list[int] = []
    write_shard = convert.write_shard

    def note(settings: Any, number: int, events: Any) -> Any:
        written.append(number)
        return write_shard(settings, number, events)

    monkeypatch.setattr(convert, "write_shard", note)
    return written


def test_a_run_goes_on_where_it_stopped(
    mine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(mine, tmp_path / "whole", workers=1)
    interrupted(mine, tmp_path / "store", monkeypatch, after=4)
    # a line that was being written, and files of a shard that has no line
    begun = tmp_path / ".store.partial"
    with open(begun / "parts" / "shards.jsonl", "a") as file:
        file.write('{"number": 4, "sha')
    (begun / "records-00004.jsonl").write_text("half")
    (begun / "records-00077.jsonl").write_text("stray")
    written = numbers_written(monkeypatch)
    assert made(mine, tmp_path / "store", workers=1) == first
    assert written == [4, 5, 6, 7, 8, 9]
    assert sorted(p.name for p in tmp_path.iterdir() if "store" in p.name) == ["store"]


@pytest.mark.parametrize("what", ["input", "option", "lost file"])
def test_work_of_another_kind_is_not_continued(
    mine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    interrupted(mine, tmp_path / "store", monkeypatch, after=4)
    options: dict[str, Any] = {}
    expected = list(range(10))
    if what == "input":
        with open(mine["annotations"][0], "a") as file:
            file.write("\n{}\n")
    elif what == "option":
        options = {"min_box_area": 0.5}
    else:
        (tmp_path / ".store.partial" / "records-00002.jsonl").write_text("cut")
        expected = [2, 4, 5, 6, 7, 8, 9]
    whole = made(mine, tmp_path / "whole", workers=1, **options)
    written = numbers_written(monkeypatch)
    assert made(mine, tmp_path / "store", workers=1, **options) == whole
    assert written == expected


def test_two_processes_never_write_one_store(
    mine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inside(settings: Any, number: int, events: Any) -> Any:
        with pytest.raises(OutputError, match="another xvlm prepare-data is writing"):
            prepare("jsonl", tmp_path / "store", {**mine, "workers": 1}, command="x")
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "write_shard", inside)
    with pytest.raises(KeyboardInterrupt):
        prepare("jsonl", tmp_path / "store", {**mine, "workers": 1}, command="x")


def test_a_full_disk_keeps_what_is_done(
    mine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(mine, tmp_path / "whole", workers=1)
    write_shard = convert.write_shard

    def full(settings: Any, number: int, events: Any) -> Any:
        if number == 3:
            raise OSError(28, "No space left on device", "records-00003.jsonl")
        return write_shard(settings, number, events)

    with monkeypatch.context() as patch:
        patch.setattr(convert, "write_shard", full)
        with pytest.raises(OutputError, match="No space left on device"):
            prepare("jsonl", tmp_path / "store", {**mine, "workers": 1}, command="x")
    written = numbers_written(monkeypatch)
    assert made(mine, tmp_path / "store", workers=1) == whole
    assert written == [3, 4, 5, 6, 7, 8, 9]


def die(number: int, events: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_one_clear_line_and_no_end(
    mine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    with monkeypatch.context() as patch:
        patch.setattr(engines, "_work", die)
        with pytest.raises(DataError, match="a worker process was killed") as caught:
            prepare("jsonl", tmp_path / "store", {**mine, "workers": 2}, command="x")
    assert caught.value.try_ is not None
    assert "continues where it stopped" in caught.value.try_
    made(mine, tmp_path / "store", workers=2)


def test_a_packed_store_holds_the_same_pictures_and_can_be_moved(
    mine: dict[str, Any], tmp_path: Path
) -> None:
    made(mine, tmp_path / "plain", workers=1)
    made(mine, tmp_path / "packed", workers=1, pack=True)
    (tmp_path / "packed").rename(tmp_path / "moved")
    plain, packed = Store.open(tmp_path / "plain"), Store.open(tmp_path / "moved")
    assert packed.manifest.packed
    for i in range(N):
        one, two = plain[i], packed[i]
        source = plain.picture(one)
        assert isinstance(source, Path)
        assert packed.picture(two) == source.read_bytes(), "bytes are copied, not made again"
        assert {**one.to_json(), "image": ""} == {**two.to_json(), "image": ""}
    assert [list(plain.indices(s)) for s in ("train", "val")] == [
        list(packed.indices(s)) for s in ("train", "val")
    ]


def test_any_tar_reader_reads_a_packed_store(mine: dict[str, Any], tmp_path: Path) -> None:
    made(mine, tmp_path / "packed", workers=1, pack=True)
    store = Store.open(tmp_path / "packed")
    seen = 0
    for shard in store.manifest.shards:
        with tarfile.open(tmp_path / "packed" / shard.file) as tar:
            members = tar.getmembers()
            assert all(m.isfile() and m.mtime == 0 and m.uname == "" for m in members)
            for picture, record in zip(members[::2], members[1::2], strict=True):
                assert picture.name.split(".")[0] == record.name.split(".")[0]
                file, text = tar.extractfile(picture), tar.extractfile(record)
                assert file is not None
                assert text is not None
                content = json.loads(text.read())
                image = Image.open(io.BytesIO(file.read()))
                assert store[seen].to_json() == content
                shown = (content["width"], content["height"])
                assert image.size in (shown, shown[::-1])
                seen += 1
    assert seen == N


@pytest.mark.skipif(
    importlib.util.find_spec("webdataset") is None, reason="webdataset is not installed"
)
def test_webdataset_reads_a_packed_store(mine: dict[str, Any], tmp_path: Path) -> None:
    import webdataset

    made(mine, tmp_path / "packed", workers=1, pack=True)
    store = Store.open(tmp_path / "packed")
    tars = [str(tmp_path / "packed" / shard.file) for shard in store.manifest.shards]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    assert [sample["json"]["id"] for sample in samples] == [store[i].id for i in range(N)]


def test_smaller_copies_have_smaller_boxes(mine: dict[str, Any], tmp_path: Path) -> None:
    made(mine, tmp_path / "plain", workers=1)
    made(mine, tmp_path / "small", workers=1, pack=True, resize=64)
    plain, small = Store.open(tmp_path / "plain"), Store.open(tmp_path / "small")
    assert small.manifest.resized == 64
    reduced = 0
    for i in range(N):
        one, two = plain[i], small[i]
        image = read_picture(small.picture(two))
        assert image.size == (two.width, two.height)
        if max(one.width, one.height) <= 64:
            assert (one.width, one.height, one.regions) == (two.width, two.height, two.regions)
            continue
        reduced += 1
        assert max(image.size) == 64
        for big, little in zip(one.regions, two.regions, strict=True):
            scale = np.array([two.width / one.width, two.height / one.height] * 2)
            np.testing.assert_allclose(
                little.box_xyxy_px, np.array(big.box_xyxy_px) * scale, atol=1e-3
            )
    assert reduced > 20


def test_resize_without_pack_is_refused(mine: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--resize"):
        prepare("jsonl", tmp_path / "s", {**mine, "resize": 64}, command="x")
    assert not (tmp_path / "s").exists()


def test_the_same_id_twice_is_named_also_over_shards(tmp_path: Path, mine: dict[str, Any]) -> None:
    with open(mine["annotations"][0], "a") as file:
        file.write('\n{"id": "r3", "image": "5.png", "captions": ["again"]}\n')
    with pytest.raises(DataError, match=r"records with the same id: r3$"):
        prepare("jsonl", tmp_path / "s", {**mine, "workers": 2}, command="x")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_shard_that_is_lost_or_changed_is_named(mine: dict[str, Any], tmp_path: Path) -> None:
    for name, message in (("records-00003.jsonl", "records-00003.jsonl"),):
        folder = tmp_path / "store"
        made(mine, folder, workers=1)
        (folder / name).unlink()
        with pytest.raises(DataError, match=message) as caught:
            Store.open(folder)
        assert caught.value.try_ is not None
        assert "prepare it again: x" in caught.value.try_


def test_a_process_that_is_refused_leaves_the_others_work_alone(
    mine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard = convert.write_shard

    def with_a_rival(settings: Any, number: int, events: Any) -> Any:
        with pytest.raises(OutputError, match="another"):
            prepare("jsonl", tmp_path / "store", {**mine, "workers": 1}, command="x")
        return write_shard(settings, number, events)

    with monkeypatch.context() as patch:
        patch.setattr(convert, "write_shard", with_a_rival)
        prepare("jsonl", tmp_path / "store", {**mine, "workers": 1}, command="x")
    assert files_of(tmp_path / "store") == made(mine, tmp_path / "whole", workers=1)


def test_what_appears_at_the_place_in_the_meantime_is_not_replaced(
    mine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard = convert.write_shard

    def meanwhile(settings: Any, number: int, events: Any) -> Any:
        (tmp_path / "store").mkdir(exist_ok=True)
        (tmp_path / "store" / "thesis.txt").write_text("years of work")
        return write_shard(settings, number, events)

    with monkeypatch.context() as patch:
        patch.setattr(convert, "write_shard", meanwhile)
        with pytest.raises(OutputError, match="is not empty"):
            prepare("jsonl", tmp_path / "store", {**mine, "workers": 1}, command="x")
    assert (tmp_path / "store" / "thesis.txt").read_text() == "years of work"


def test_a_folder_that_changed_while_it_stood_still_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pictures" / "inside"
    folder.mkdir(parents=True)
    for i in range(8):
        Image.new("RGB", (8, 8), (i, i, i)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}")
    options = {"root": tmp_path / "pictures", "shard_records": 3, "workers": 1}
    write_shard = convert.write_shard

    def stop(settings: Any, number: int, events: Any) -> Any:
        if number == 1:
            raise KeyboardInterrupt
        return write_shard(settings, number, events)

    with monkeypatch.context() as patch:
        patch.setattr(convert, "write_shard", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare("image-folder", tmp_path / "store", options, command="x")
    (folder / "0.png").unlink()  # its text stays: no file that is an input has changed
    prepare("image-folder", tmp_path / "store", options, command="x")
    prepare("image-folder", tmp_path / "whole", options, command="x")
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole")


PLAN = """
import hashlib, pickle, sys
from pathlib import Path
from xvlm_core.sources.registry import SOURCES, checked_options
source = SOURCES["jsonl"]
options = {"annotations": [Path(sys.argv[1])], "images": Path(sys.argv[2])}
values = checked_options(source, options)
plan = source.plan({option.name: values[option.name] for option in source.options})
print(hashlib.sha256(pickle.dumps(list(plan.events), pickle.HIGHEST_PROTOCOL)).hexdigest())
"""


def test_what_a_shard_is_made_of_is_the_same_for_every_process(mine: dict[str, Any]) -> None:
    digests = set()
    for seed in ("1", "2"):
        words = [str(mine["annotations"][0]), str(mine["images"])]
        done = subprocess.run(
            [sys.executable, "-c", PLAN, *words],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY)},
        )
        digests.add(done.stdout)
    assert len(digests) == 1


def test_the_current_folder_is_not_taken_from_under_ones_feet(
    mine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputError, match="current folder"):
        prepare("jsonl", Path(), mine, command="x")


def test_a_picture_that_the_disk_cannot_read_is_lost_alone(
    mine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xvlm_core.sources import pictures

    checked = pictures._checked

    def bad_sector(root: Any, job: Any, **options: Any) -> Any:
        if job.picture == "7.gif":
            raise OSError(5, "Input/output error")
        return checked(root, job, **options)

    monkeypatch.setattr(pictures, "_checked", bad_sector)
    manifest = prepare("jsonl", tmp_path / "store", {**mine, "workers": 1}, command="x")
    assert manifest.counts["picture"]["dropped"] == {"missing": 1, "unreadable": 1}


def test_overwriting_never_deletes_what_is_to_be_read_or_is_not_ours(
    mine: dict[str, Any], tmp_path: Path
) -> None:
    made(mine, tmp_path / "store", workers=1, pack=True)
    inside = tmp_path / "store" / "answers.json"
    inside.write_bytes(mine["annotations"][0].read_bytes())
    before = files_of(tmp_path / "store")

    def refused(match: str, source: str, options: dict[str, Any]) -> None:
        with pytest.raises(OutputError, match=match):
            prepare(source, tmp_path / "store", options, command="x", overwrite=True)

    refused("delete the pictures", "webdataset", {"root": [tmp_path / "store"]})
    refused("which is to be read", "jsonl", {**mine, "annotations": [inside]})
    assert files_of(tmp_path / "store") == before
    (tmp_path / "store" / "my-notes.txt").write_text("mine")
    refused(r"no part of a store: my-notes\.txt", "jsonl", mine)
    (tmp_path / "store" / "my-notes.txt").unlink()
    prepare("jsonl", tmp_path / "store", mine, command="x", overwrite=True)


def test_a_file_given_twice_is_refused(mine: dict[str, Any], tmp_path: Path) -> None:
    twice = [*mine["annotations"], tmp_path / "pictures" / ".." / "mine.jsonl"]
    with pytest.raises(UsageError, match="--annotations has the same file twice"):
        prepare("jsonl", tmp_path / "s", {**mine, "annotations": twice}, command="x")
