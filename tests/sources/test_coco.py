from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sources.conftest import Prepare
from xvlm_core.data.records import Region
from xvlm_core.errors import DataError, UsageError

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 7, "name": "hot dog"}]


def image(id: int, name: str = "ok.jpg", size: tuple[int, int] = (160, 90)) -> dict[str, Any]:
    return {"id": id, "file_name": name, "width": size[0], "height": size[1]}


def box(id: int, image_id: int, bbox: object, category: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": id, "image_id": image_id, "category_id": category, "bbox": bbox, **more}


def caption(id: int, image_id: int, text: object) -> dict[str, Any]:
    return {"id": id, "image_id": image_id, "caption": text}


def write(path: Path, images: list[Any], annotations: list[Any], **more: Any) -> Path:
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES, **more}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small COCO: three training pictures, one of validation."""
    root = tmp_path / "coco"
    for folder in ("annotations", "train2017", "val2017"):
        (root / folder).mkdir(parents=True)
    for name in ("train2017/11.jpg", "train2017/12.jpg", "train2017/13.jpg", "val2017/21.jpg"):
        Image.new("RGB", (160, 90)).save(root / name)
    train = [image(i, f"{i}.jpg") for i in (11, 12, 13)]
    write(
        root / "annotations" / "instances_train2017.json",
        train,
        [
            box(1, 11, [10, 10, 50.25, 50], 7, segmentation=[[1, 2]], iscrowd=0),
            box(2, 11, [0, 0, 160, 90], iscrowd=1, segmentation={"counts": [1], "size": [1, 1]}),
            box(3, 12, [10, 10, 3, 3]),
        ],
    )
    captions = [caption(5, 11, "A man. \n"), caption(6, 12, "Two dogs"), caption(7, 11, " ")]
    write(root / "annotations" / "captions_train2017.json", train, captions)
    val = [image(21, "21.jpg")]
    write(root / "annotations" / "instances_val2017.json", val, [box(9, 21, [1, 2, 90, 80])])
    write(root / "annotations" / "captions_val2017.json", val, [caption(8, 21, "A cat")])
    write(root / "annotations" / "person_keypoints_train2017.json", [], [])
    return root


def test_captions_and_boxes_of_a_picture_become_one_record(
    root: Path, prepare_store: Prepare
) -> None:
    done = prepare_store("coco", {"root": root})
    assert [r.id for r in done.records] == ["11", "12", "21"]
    first = done.records[0]
    assert first.image == "train2017/11.jpg"
    assert (first.width, first.height, first.split, first.source) == (160, 90, "train", "coco")
    assert first.captions == ("A man.",)
    assert first.regions == (
        Region("hot dog", (10, 10, 60.25, 60), "object"),
        Region("person", (0, 0, 160, 90), "object"),
    )
    assert done.manifest.splits == {"train": 2, "val": 1}
    assert done.lost("picture") == {"13": "no text left"}
    assert done.lost("region") == {"3": "box too small"}
    assert done.lost("caption") == {"7": "empty text"}


def test_options_change_what_is_kept(root: Path, prepare_store: Prepare) -> None:
    assert prepare_store("coco", {"root": root, "crowd": False}).lost("region") == {
        "2": "crowd",
        "3": "box too small",
    }
    assert prepare_store("coco", {"root": root, "min_box_area": 0.0}).dropped("region") == {}
    assert prepare_store("coco", {"root": root, "split": "all"}).manifest.splits == {"all": 3}


def test_files_can_be_named_instead_of_the_root(root: Path, prepare_store: Prepare) -> None:
    file = root / "annotations" / "captions_train2017.json"
    done = prepare_store("coco", {"annotations": [file], "images": root})
    assert [r.image for r in done.records] == ["train2017/11.jpg", "train2017/12.jpg"]
    done = prepare_store("coco", {"annotations": [file], "images": root / "train2017"})
    assert [r.image for r in done.records] == ["11.jpg", "12.jpg"]


def test_excluded_pictures_are_counted_with_all_their_texts(
    root: Path, tmp_path: Path, prepare_store: Prepare
) -> None:
    (tmp_path / "ids.txt").write_text("11.jpg\n\n21\n99\n")
    options = {"root": root, "exclude": str(tmp_path / "ids.txt"), "split": "train"}
    done = prepare_store("coco", options)
    assert [r.id for r in done.records] == ["12"]
    assert done.dropped("picture") == {"excluded": 2, "no text left": 1}
    assert done.dropped("caption") == {"picture: excluded": 3}
    assert done.dropped("region") == {"picture: excluded": 3, "box too small": 1}


def test_bad_boxes_are_each_counted_under_their_reason(
    pictures: Path, tmp_path: Path, prepare_store: Prepare
) -> None:
    boxes: list[object] = [
        [-5, 10, 50, 50],
        [60, 60, -30, -20],
        [10, 10, 0, 50],
        [140, 10, 50, 50],
        [10, 10, 3, 3],
        ["10", "10", "50", "50"],
        [10, 10, 50],
        None,
        [float("nan"), 10, 50, 50],
        [10, float("inf"), 50, 50],
        [10, 10, 10**400, 50],
        [0, 0, 160, 90],
    ]
    annotations = [box(i, 1, b) for i, b in enumerate(boxes)]
    file = write(tmp_path / "boxes.json", [image(1)], annotations)
    options = {"annotations": [file], "images": pictures, "min_box_area": 0.01}
    done = prepare_store("coco", options)
    assert done.dropped("region") == {
        "box outside the picture": 2,
        "box has no area": 2,
        "box too small": 1,
        "box malformed": 3,
        "box not finite": 3,
    }
    assert done.records[0].regions[0].box_xyxy_px == (0, 0, 160, 90)


def test_what_refers_to_nothing_is_dropped(
    pictures: Path, tmp_path: Path, prepare_store: Prepare
) -> None:
    sound = [10, 10, 50, 50]
    images = [image(1), image(2, "none.jpg"), image(3, "ok.jpg", (999, 999)), image(4, "cut.jpg")]
    annotations = [
        box(1, 1, sound),
        box(2, 77, sound),
        box(3, 1, sound, 99),
        box(4, 2, sound),
        box(5, 3, [10, 10, 500, 500]),
        box(6, 4, sound),
        box(7, [1], sound),  # type: ignore[arg-type]
        "annotation",
    ]
    file = write(tmp_path / "refs.json", images, annotations)
    done = prepare_store("coco", {"annotations": [file], "images": pictures})
    assert done.lost("picture") == {"2": "missing", "3": "size mismatch", "4": "truncated image"}
    assert done.lost("region") == {
        "2": "unknown image",
        "3": "unknown category",
        "4": "picture: missing",
        "5": "picture: size mismatch",
        "6": "picture: truncated image",
        "7": "unknown image",
    }
    assert done.dropped("line") == {"not an object": 1}
    assert len(done.records[0].regions) == 1


def test_boxes_of_a_turned_picture_end_in_shown_pixels(
    pictures: Path, tmp_path: Path, prepare_store: Prepare
) -> None:
    images = [image(1, "turned.jpg", (60, 100)), image(2, "turned.jpg", (100, 60))]
    # Stored column 10 to 30, row 20 to 60; orientation 6 turns it a quarter clockwise.
    annotations = [box(1, 1, [10, 20, 20, 40]), box(2, 2, [40, 10, 40, 20])]
    file = write(tmp_path / "turned.json", images, annotations)
    done = prepare_store("coco", {"annotations": [file], "images": pictures})
    for record in done.records:
        assert (record.width, record.height) == (100, 60)
        assert record.regions[0].box_xyxy_px == (40, 10, 80, 30)
    assert done.count("region")["repaired"] == {"box turned to the picture as shown": 1}


def test_one_id_for_two_things_is_an_error_naming_them(
    pictures: Path, tmp_path: Path, prepare_store: Prepare
) -> None:
    file = write(
        tmp_path / "twice.json",
        [image(1), image(1, "other.png")],
        [box(7, 1, [10, 10, 50, 50])],
        categories=[{"id": 1, "name": "person"}, {"id": 1, "name": "moped"}],
    )
    with pytest.raises(DataError, match="one id to different things") as caught:
        prepare_store("coco", {"annotations": [file], "images": pictures})
    assert caught.value.details == (
        "image id 1: ok.jpg and other.png",
        "category id 1: 'person' and 'moped'",
    )


def test_one_id_in_two_splits_is_an_error(root: Path, prepare_store: Prepare) -> None:
    write(root / "annotations" / "instances_val2017.json", [image(11, "21.jpg")], [])
    with pytest.raises(DataError, match="1 image ids are in 'train2017' and in 'val2017': 11"):
        prepare_store("coco", {"root": root})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b'{"annotations": "none"}', "key images is missing and annotations is no list"),
        (b"[1]", "not a JSON object but a list"),
        (b"{broken", r"not valid JSON: a key in double quotes is missing \(character 1\)"),
        (b'{"images": [{"id": 1}', r"not valid JSON: it ends in the middle \(character 21\)"),
        (b'{"images": [{"id": 1}, {"i', r"not valid JSON: .* \(character 24\)"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"images": [], "images": []}', "repeated key: images"),
        (b'{"categories": [{"id": 1}]}', r"categories\[0\] has no id or no name"),
        ('{"images": []}'.encode("utf-16"), "is UTF-16, not UTF-8"),
        (b'{"images": "\xff"}', "is not UTF-8"),
    ],
)
def test_a_damaged_file_is_one_clear_line(
    pictures: Path, tmp_path: Path, prepare_store: Prepare, content: bytes, message: str
) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        prepare_store("coco", {"annotations": [tmp_path / "bad.json"], "images": pictures})
    assert "bad.json" in caught.value.what
    assert "\n" not in caught.value.what


def test_missing_folders_and_files_say_what_to_give(tmp_path: Path, prepare_store: Prepare) -> None:
    with pytest.raises(UsageError, match="where COCO is was not said"):
        prepare_store("coco", {})
    with pytest.raises(DataError, match="there is no folder"):
        prepare_store("coco", {"root": tmp_path / "none"})
    with pytest.raises(DataError, match=r"no instances_\*\.json or captions_\*\.json"):
        prepare_store("coco", {"root": tmp_path})


def test_nothing_kept_is_an_error_with_the_reasons(
    pictures: Path, tmp_path: Path, prepare_store: Prepare
) -> None:
    file = write(tmp_path / "a.json", [image(1, "none.jpg")], [box(1, 1, [1, 1, 50, 50])])
    with pytest.raises(DataError, match="nothing to keep") as caught:
        prepare_store("coco", {"annotations": [file], "images": pictures})
    assert any(d.startswith("picture: 1 dropped, missing") for d in caught.value.details)
    assert not list(tmp_path.glob("*store*"))


# The agreed samples


@pytest.mark.parametrize("split", ["train", "val"])
def test_counts_of_the_sample_are_the_expected_ones(
    shared: Path, split: str, prepare_store: Prepare
) -> None:
    files = json.loads((shared / "data" / "expected_counts.json").read_text())["files"]
    coco = shared / "data" / "coco"
    names = [f"instances_{split}2017.json", f"captions_{split}2017.json"]
    boxes, captions = (files[f"coco/annotations/{name}"] for name in names)
    expected = boxes["objects"]
    paths = [coco / "annotations" / name for name in names]

    done = prepare_store("coco", {"annotations": paths[:1], "images": coco})
    assert done.count("picture")["read"] == boxes["images"]
    assert done.count("picture")["kept"] == expected["images_with_a_kept_box"]
    assert done.count("region")["read"] == expected["read"]
    assert done.count("region")["kept"] == expected["kept"]
    assert done.dropped("region") == {"box too small": expected["box_below_1_percent"]}
    assert done.manifest.splits == {split: expected["images_with_a_kept_box"]}

    done = prepare_store("coco", {"annotations": paths[:1], "images": coco, "crowd": False})
    assert done.count("region")["kept"] == expected["kept_without_crowd_boxes"]

    done = prepare_store("coco", {"annotations": paths[1:], "images": coco})
    assert done.count("caption")["kept"] == captions["captions_with_text_after_cleaning"]

    excluded = shared / "data" / "coco_karpathy" / "dataset_coco.json"
    options = {"exclude": str(excluded), "decode": True, "split": "train"}
    done = prepare_store("coco", {"annotations": paths, "images": coco, **options})
    key = "kept_after_removing_karpathy_val_and_test_images"
    assert done.count("region")["kept"] == expected[key]
    assert (
        done.count("caption")["kept"]
        == captions["captions_on_images_outside_karpathy_val_and_test"]
    )


def test_hostile_files_of_the_sample(shared: Path, prepare_store: Prepare) -> None:
    hostile = shared / "data" / "hostile"

    def run(name: str) -> Any:
        options = {"annotations": [hostile / name], "images": hostile, "min_box_area": 0.01}
        return prepare_store("coco", options)

    assert run("nan_boxes.json").dropped("region") == {"box not finite": 4}
    assert run("bad_boxes.json").dropped("region") == {
        "box outside the picture": 5,
        "box has no area": 3,
        "box too small": 1,
        "box malformed": 3,
    }
    assert run("missing_refs.json").lost("region") == {
        "2": "unknown image",
        "3": "unknown category",
        "4": "picture: missing",
        "5": "picture: size mismatch",
    }
    turned = run("exif_rotated.json")
    assert [r.regions[0].box_xyxy_px for r in turned.records] == [(106, 7, 154, 101)] * 2
    for name in ("duplicate_ids", "wrong_top", "deep", "empty", "double_key"):
        with pytest.raises(DataError):
            run(f"{name}.json")


def test_the_source_imports_no_torch() -> None:
    code = (
        "import sys, xvlm_core.sources.registry; print('numpy' in sys.modules)\n"
        "import xvlm_core.sources.coco, xvlm_core.sources.jsonl, xvlm_core.sources.world\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
