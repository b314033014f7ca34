from __future__ import annotations

from pathlib import Path

import pytest

from xvlm_core.config.data_sections import DataSection
from xvlm_core.data import leaks
from xvlm_core.data.leaks import find_leaks
from xvlm_core.data.records import Record
from xvlm_core.data.store import StoreWriter


def record(id: str, split: str, *same: str) -> Record:
    return Record(id, (f"{id}.jpg",), 4, 4, ("a",), split=split, same_as=same)


def make(folder: Path, *records: Record) -> None:
    with StoreWriter(
        folder, image_root=folder.parent, source="x", command="make", shard_records=2
    ) as writer:
        for one in records:
            writer.add(one)


@pytest.fixture
def data(tmp_path: Path) -> DataSection:
    """Trains on coco and vg; karpathy and flickr30k are held out, nlvr2 is not prepared."""
    make(
        tmp_path / "coco",
        *(record(str(i), "train", f"coco:{i}", f"flickr:{i}00000") for i in range(1, 8)),
        record("9", "val", "coco:9"),
    )
    make(tmp_path / "vg", record("v1", "train", "vg:1", "coco:3"), record("v2", "train", "vg:2"))
    make(tmp_path / "web", record("w", "train"))
    make(
        tmp_path / "karpathy",
        record("k2", "train", "coco:2"),
        record("k3", "val", "coco:3"),
        record("k9", "test", "coco:9"),
        record("k77", "test", "coco:77"),
    )
    make(tmp_path / "flickr30k", record("f", "test", "flickr:500000"))
    make(tmp_path / "plain", record("p", "test"))
    return DataSection.model_validate(
        {
            "root": str(tmp_path),
            "images": {"stores": ("coco", "web")},
            "regions": {"stores": ("coco", "vg")},
            "held_out": ("karpathy", "flickr30k", "plain", "nlvr2"),
        }
    )


def test_held_out_pictures_that_are_trained_on_are_found_by_any_name(data: DataSection) -> None:
    report = find_leaks(data)
    assert [(x.training, x.held_out, x.pictures, x.examples) for x in report.leaks] == [
        ("coco", "karpathy (val, test)", 1, (("3", "k3", "coco:3"),)),
        ("vg", "karpathy (val, test)", 1, (("v1", "k3", "coco:3"),)),
        ("coco", "flickr30k (test)", 1, (("5", "f", "flickr:500000"),)),
    ]
    assert report.compared == ("karpathy val+test", "flickr30k test")
    assert report.missing == ("nlvr2",)
    assert set(report.nameless) == {"plain", "web"}
    assert (len(report.notes()), len(report.warnings())) == (1, 2)


def test_only_the_splits_that_are_named_are_held_out(data: DataSection) -> None:
    for held_out, expected in ((("karpathy:test",), 0), (("karpathy:train",), 1)):
        report = find_leaks(data.model_copy(update={"held_out": held_out}))
        assert sum(leak.pictures for leak in report.leaks) == expected


def test_pictures_of_other_splits_are_not_trained_on(data: DataSection) -> None:
    report = find_leaks(data.model_copy(update={"train_split": "val"}))
    assert [(x.training, x.examples) for x in report.leaks] == [("coco", (("9", "k9", "coco:9"),))]


def test_equal_hashes_of_different_names_are_no_leak(
    data: DataSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = leaks._names

    def all_equal(store: object) -> object:
        rows = names(store)  # type: ignore[arg-type]
        if rows is None:
            return None
        rows = rows.copy()
        rows["name"] = 7
        return rows

    monkeypatch.setattr(leaks, "_names", all_equal)
    report = find_leaks(data)
    assert sorted({leak.training for leak in report.leaks}) == ["coco", "vg"]
    assert sum(leak.pictures for leak in report.leaks) == 3


def test_what_exclude_takes_is_what_is_printed(data: DataSection) -> None:
    leak = find_leaks(data).leaks[0]
    assert leak.exclude == f"{data.root}/karpathy:val,test"
