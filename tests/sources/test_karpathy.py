from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sources.conftest import Prepare
from xvlm_core.errors import DataError, UsageError


def coco(id: int, split: str, *raw: Any, folder: str = "val2014") -> dict[str, Any]:
    sentences = [
        {"tokens": ["a"], "raw": text, "imgid": 0, "sentid": 10 * id + n}
        for n, text in enumerate(raw)
    ]
    return {
        "filepath": folder,
        "sentids": [s["sentid"] for s in sentences],
        "filename": f"COCO_{folder}_{id:012d}.jpg",
        "imgid": 0,
        "split": split,
        "sentences": sentences,
        "cocoid": id,
    }


def flickr(id: str, split: str, *raw: str) -> dict[str, Any]:
    entry = coco(1, split, *raw)
    del entry["cocoid"], entry["filepath"]
    return entry | {"filename": f"{id}.jpg"}


def write(path: Path, images: Any, dataset: str = "coco") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "dataset": dataset}))
    return path


def draw(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (160, 90)).save(path)


ENTRIES = [
    coco(9, "train", "A cat. ", "Two cats", folder="train2014"),
    coco(12, "restval", "A dog"),
    coco(13, "val", "A cow\n"),
    coco(14, "test", "A horse", "."),
]


def test_raw_captions_and_splits_of_coco(tmp_path: Path, prepare_store: Prepare) -> None:
    write(tmp_path / "dataset_coco.json", ENTRIES)
    draw(tmp_path / "train2014" / "COCO_train2014_000000000009.jpg")
    draw(*(tmp_path / "val2014" / f"COCO_val2014_0000000000{id}.jpg" for id in (12, 13, 14)))
    done = prepare_store("karpathy", {"root": tmp_path})
    assert [(r.id, r.image, r.split, r.captions, r.meta) for r in done.records] == [
        (
            "9",
            "train2014/COCO_train2014_000000000009.jpg",
            "train",
            ("A cat.", "Two cats"),
            {"karpathy": "train"},
        ),
        (
            "12",
            "val2014/COCO_val2014_000000000012.jpg",
            "train",
            ("A dog",),
            {"karpathy": "restval"},
        ),
        ("13", "val2014/COCO_val2014_000000000013.jpg", "val", ("A cow",), {"karpathy": "val"}),
        ("14", "val2014/COCO_val2014_000000000014.jpg", "test", ("A horse",), {"karpathy": "test"}),
    ]
    assert done.records[0].same_as == ("coco:9",)
    assert done.lost("caption") == {"141": "empty text"}
    done = prepare_store("karpathy", {"root": tmp_path, "restval": "restval"})
    assert done.manifest.splits == {"train": 1, "restval": 1, "val": 1, "test": 1}


@pytest.mark.parametrize(
    "names",
    [
        ["train2017/000000000009.jpg", "train2017/000000000012.jpg", "val2017/000000000013.jpg"],
        ["000000000009.jpg", "000000000012.jpg", "000000000013.jpg"],
        [
            "COCO_train2014_000000000009.jpg",
            "COCO_val2014_000000000012.jpg",
            "COCO_val2014_000000000013.jpg",
        ],
        [
            "images/train2014/COCO_train2014_000000000009.jpg",
            "images/val2014/COCO_val2014_000000000012.jpg",
            "images/val2014/COCO_val2014_000000000013.jpg",
        ],
    ],
)
def test_pictures_may_be_named_as_in_2017_or_lie_in_one_folder(
    tmp_path: Path, prepare_store: Prepare, names: list[str]
) -> None:
    file = write(tmp_path / "annotations" / "dataset_coco.json", ENTRIES[:3])
    draw(*(tmp_path / "pictures" / name for name in names))
    done = prepare_store("karpathy", {"annotations": file, "images": tmp_path / "pictures"})
    assert [r.image for r in done.records] == names


def test_one_missing_picture_is_dropped_alone(tmp_path: Path, prepare_store: Prepare) -> None:
    write(tmp_path / "dataset_coco.json", ENTRIES)
    draw(*(tmp_path / "val2014" / f"COCO_val2014_0000000000{id}.jpg" for id in (12, 13, 14)))
    done = prepare_store("karpathy", {"root": tmp_path})
    assert done.lost("picture") == {"9": "missing"}
    assert done.dropped("caption") == {"picture: missing": 2, "empty text": 1}


def test_flickr30k_is_known_by_its_photo_ids(tmp_path: Path, prepare_store: Prepare) -> None:
    entries = [flickr("36979", "train", "A man"), flickr("1234_abcd", "val", "A boat")]
    write(tmp_path / "dataset_flickr30k.json", entries, "flickr30k")
    folder = tmp_path / "flickr30k-images"
    draw(folder / "36979.jpg", folder / "1234_abcd.jpg")
    done = prepare_store("karpathy", {"root": tmp_path})
    assert [(r.id, r.image, r.same_as) for r in done.records] == [
        ("36979", "flickr30k-images/36979.jpg", ("flickr:36979",)),
        ("1234_abcd", "flickr30k-images/1234_abcd.jpg", ("flickr:1234",)),
    ]
    assert done.manifest.splits == {"train": 1, "val": 1}


def test_malformed_entries_are_dropped_each_with_its_reason(
    tmp_path: Path, prepare_store: Prepare
) -> None:
    entries = [
        "entry",
        {**coco(1, "train", "a"), "filename": 3},
        {**coco(2, "train", "a"), "sentences": "a"},
        {**coco(3, "train", "a"), "split": None},
        coco(12, "train", "A dog", None, 5),
        {**coco(13, "train", "A cow"), "sentences": ["A cow"]},
    ]
    write(tmp_path / "dataset_coco.json", entries)
    draw(*(tmp_path / "val2014" / f"COCO_val2014_0000000000{id}.jpg" for id in (12, 13)))
    done = prepare_store("karpathy", {"root": tmp_path})
    assert done.lost("picture") == {
        "dataset_coco.json: images[0]": "not an object",
        "dataset_coco.json: images[1]": "no image",
        "dataset_coco.json: images[2]": "no text",
        "dataset_coco.json: images[3]": "no split",
        "13": "no text left",
    }
    assert done.dropped("caption") == {"text malformed": 2, "not an object": 1}
    assert [r.captions for r in done.records] == [("A dog",)]


def test_what_is_not_there_is_named(tmp_path: Path, prepare_store: Prepare) -> None:
    with pytest.raises(UsageError, match="was not said"):
        prepare_store("karpathy", {})
    with pytest.raises(DataError, match="there is no folder"):
        prepare_store("karpathy", {"root": tmp_path / "none"})
    with pytest.raises(DataError, match=r"no dataset_coco\.json, dataset_flickr30k\.json in"):
        prepare_store("karpathy", {"root": tmp_path})
    write(tmp_path / "dataset_coco.json", ENTRIES)
    with pytest.raises(DataError) as caught:
        prepare_store("karpathy", {"root": tmp_path})
    assert caught.value.what == (
        f"none of the first 4 pictures of dataset_coco.json is in {tmp_path}: "
        "no train2014/COCO_train2014_000000000009.jpg, no train2017/000000000009.jpg, "
        "no COCO_train2014_000000000009.jpg, no 000000000009.jpg"
    )
    assert caught.value.try_ == "--images FOLDER of the pictures"
    write(tmp_path / "dataset_flickr30k.json", [])
    with pytest.raises(DataError, match="2 split files") as caught:
        prepare_store("karpathy", {"root": tmp_path})
    assert str(tmp_path / "dataset_coco.json") in str(caught.value.try_)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"annotations": []}', "has no images: it is no split file"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}]}', "is no split file of Karpathy"),
        ('{"images": [{"filename": "a.jpg"', "not valid JSON"),
        ("[]", "not a JSON object but a list"),
        ("", "empty file"),
    ],
)
def test_another_file_is_refused(
    tmp_path: Path, prepare_store: Prepare, content: str, message: str
) -> None:
    (tmp_path / "dataset_coco.json").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        prepare_store("karpathy", {"root": tmp_path})
    assert "dataset_coco.json" in caught.value.what


# The agreed samples


def counts(shared: Path, name: str) -> dict[str, Any]:
    files = json.loads((shared / "data" / "expected_counts.json").read_text())["files"]
    return dict(files[name])


@pytest.mark.parametrize("images", ["coco_2014_images", "coco"])
def test_counts_of_coco_are_the_expected_ones(
    shared: Path, prepare_store: Prepare, images: str
) -> None:
    expected = counts(shared, "coco_karpathy/dataset_coco.json")
    data = shared / "data"
    options = {"root": data / "coco_karpathy", "images": data / images, "restval": "restval"}
    done = prepare_store("karpathy", options)
    assert done.count("picture")["kept"] == done.count("picture")["read"] == expected["images"]
    assert done.count("caption")["kept"] == done.count("caption")["read"] == expected["captions"]
    assert done.manifest.splits == expected["images_by_split"]
    by_split = dict.fromkeys(expected["captions_by_split"], 0)
    for record in done.records:
        by_split[record.split] += len(record.captions)
    assert by_split == expected["captions_by_split"]


def test_counts_of_flickr30k_are_the_expected_ones(shared: Path, prepare_store: Prepare) -> None:
    expected = counts(shared, "flickr30k/dataset_flickr30k.json")
    done = prepare_store("karpathy", {"root": shared / "data" / "flickr30k"})
    assert done.count("picture")["kept"] == expected["images"]
    assert done.count("caption")["kept"] == expected["captions"]
    assert done.manifest.splits == expected["images_by_split"]

    coco = prepare_store("coco", {"root": shared / "data" / "coco"})
    names = {name for record in coco.records for name in record.same_as}
    found = [record for record in done.records if names & {*record.same_as}]
    assert len(found) == expected["coco_images_with_the_same_flickr_photo"]
