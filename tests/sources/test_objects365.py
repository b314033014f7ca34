from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sources.conftest import Prepare
from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.objects365 import text_of

CATEGORIES = [
    {"id": 1, "name": "Person"},
    {"id": 38, "name": "Moniter/TV"},
    {"id": 45, "name": "Trash bin Can"},
    {"id": 53, "name": "Bakset"},
]


def image(id: int, name: str) -> dict[str, Any]:
    return {"height": 90, "id": id, "license": 5, "width": 160, "file_name": name, "url": ""}


def box(id: int, image_id: int, bbox: object, category: int = 1, **marks: int) -> dict[str, Any]:
    flags = {"iscrowd": 0, "isfake": 0, "isreflected": 0, **marks}
    return {"id": id, "image_id": image_id, "category_id": category, "bbox": bbox, **flags}


def write(path: Path, images: list[Any], annotations: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"annotations": annotations, "images": images, "categories": CATEGORIES}
    path.write_text(json.dumps(content))
    return path


def draw(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (160, 90)).save(path)


WHOLE = [0.0, 0.0, 100.25, 80.5]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "objects365"
    images = [
        image(7, "images/v1/patch8/objects365_v1_00000007.jpg"),
        image(8, "images/v2/patch17/objects365_v2_00000008.jpg"),
    ]
    annotations = [
        box(1, 8, WHOLE, 38),
        box(2, 7, WHOLE, 53, iscrowd=1),
        box(3, 8, WHOLE, 1, isfake=1),
        box(4, 8, [1.5, 1.5, 50, 50.5], 45, isreflected=1),
        box(5, 7, [1, 2, 80, 70]),
        box(6, 7, [-0.0004, 2, 80, 70]),
    ]
    write(root / "zhiyuan_objv2_train.json", images, annotations)
    draw(root / "train" / "patch8" / "objects365_v1_00000007.jpg")
    draw(root / "train" / "patch17" / "objects365_v2_00000008.jpg")
    return root


def test_boxes_of_a_picture_become_one_record(root: Path, prepare_store: Prepare) -> None:
    done = prepare_store("objects365", {"root": root})
    first, second = done.records
    assert (first.id, first.image) == ("7", "train/patch8/objects365_v1_00000007.jpg")
    assert (first.split, first.source, first.same_as) == ("train", "objects365", ("objects365:7",))
    assert [(r.text, r.box_xyxy_px, r.kind) for r in first.regions] == [
        ("Basket", (0, 0, 100.25, 80.5), "object"),
        ("Person", (1, 2, 81, 72), "object"),
    ]
    assert second.image == "train/patch17/objects365_v2_00000008.jpg"
    assert [r.text for r in second.regions] == ["Monitor", "Person", "Trash bin Can"]
    assert done.lost("region") == {"6": "box outside the picture"}
    repaired = [line for line in done.ledger if line["what"] == "repaired"]
    assert [(line["id"], line["seen"]) for line in repaired] == [
        ("category 38: Monitor", "Moniter/TV"),
        ("category 53: Basket", "Bakset"),
    ]


@pytest.mark.parametrize(
    ("option", "lost"),
    [
        ("crowd", {"2": "crowd"}),
        ("fakes", {"3": "depiction"}),
        ("reflected", {"4": "depiction"}),
    ],
)
def test_marked_boxes_can_be_left_out(
    root: Path, prepare_store: Prepare, option: str, lost: dict[str, str]
) -> None:
    done = prepare_store("objects365", {"root": root, option: False})
    assert done.lost("region") == {**lost, "6": "box outside the picture"}


def test_a_box_with_two_marks_is_left_out_for_either(root: Path, prepare_store: Prepare) -> None:
    name = "images/v1/patch8/objects365_v1_00000007.jpg"
    annotations = [box(1, 7, WHOLE, iscrowd=1, isreflected=1), box(2, 7, WHOLE)]
    write(root / "zhiyuan_objv2_train.json", [image(7, name)], annotations)
    done = prepare_store("objects365", {"root": root, "crowd": False})
    assert done.lost("region") == {"1": "crowd"}
    done = prepare_store("objects365", {"root": root, "reflected": False})
    assert done.lost("region") == {"1": "depiction"}


def test_a_hair_outside_is_kept_if_asked(root: Path, prepare_store: Prepare) -> None:
    for rule in ("int", "half-px"):
        done = prepare_store("objects365", {"root": root, "invalid_boxes": rule})
        assert done.lost("region") == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Person", "Person"),
        ("Handbag/Satchel", "Handbag"),
        ("Cigar/Cigarette ", "Cigar"),
        ("Table Tennis ", "Table Tennis"),
        ("Cutting/chopping Board", "Cutting Board"),
        ("Tape Measur/ Ruler", "Tape Measure"),
        ("Dinning Table", "Dining Table"),
        ("/", "/"),
    ],
)
def test_text_of_a_name(name: str, text: str) -> None:
    assert text_of(name) == text


@pytest.mark.parametrize(
    ("file", "name", "picture", "split"),
    [
        ("zhiyuan_objv2_val.json", "images/v1/patch3/a.jpg", "val/patch3/a.jpg", "val"),
        ("annotations/objects365_val.json", "a.jpg", "val/a.jpg", "val"),
        ("objects365_train.json", "train/a.jpg", "train/a.jpg", "train"),
        ("zhiyuan_objv2_train.json", "images/v2/patch3/a.jpg", "patch3/a.jpg", "train"),
        ("zhiyuan_objv2_train.json", "images/v2/patch3/a.jpg", "train/a.jpg", "train"),
        ("train/zhiyuan_objv2_train.json", "images/v1/p/a.jpg", "images/v1/p/a.jpg", "train"),
    ],
)
def test_versions_and_folders_are_found_by_themselves(
    tmp_path: Path, prepare_store: Prepare, file: str, name: str, picture: str, split: str
) -> None:
    write(tmp_path / file, [image(1, name)], [box(1, 1, WHOLE)])
    draw(tmp_path / picture)
    done = prepare_store("objects365", {"root": tmp_path})
    assert [(r.image, r.split) for r in done.records] == [(picture, split)]


def test_malformed_boxes_are_counted_each_under_its_reason(
    root: Path, prepare_store: Prepare
) -> None:
    name = "images/v1/patch8/objects365_v1_00000007.jpg"
    annotations = [
        box(1, 7, WHOLE),
        box(2, 7, [1, 2, 3]),
        box(3, 7, ["1", 2, 3, 4]),
        box(4, 7, [True, 2, 30, 40]),
        box(5, 7, [0, 0, 10**400, 4]),
        box(6, 7, [0, 0, float("nan"), 4]),
        box(7, 7, WHOLE, 99),
        box(8, 7, [1, 2, 3], "1"),  # type: ignore[arg-type]
        box(9, 6, WHOLE),
        box(10, "7", WHOLE),  # type: ignore[arg-type]
        box(2**80, 7, [0, 0, 90, 90]),
        box(12, 7, []),
        "box",
    ]
    write(root / "zhiyuan_objv2_train.json", [image(7, name)], annotations)
    done = prepare_store("objects365", {"root": root})
    assert done.lost("region") == {
        "2": "box malformed",
        "3": "box malformed",
        "4": "box malformed",
        "5": "box not finite",
        "6": "box not finite",
        "7": "unknown category",
        "8": "unknown category",
        "9": "unknown image",
        "10": "unknown image",
        "12": "box has no area",
    }
    assert done.dropped("line") == {"not an object": 1}
    assert [r.box_xyxy_px for r in done.records[0].regions] == [
        (0, 0, 100.25, 80.5),
        (0, 0, 90, 90),
    ]


def test_what_is_not_there_is_named(tmp_path: Path, root: Path, prepare_store: Prepare) -> None:
    with pytest.raises(UsageError, match="where Objects365 is was not said"):
        prepare_store("objects365", {})
    with pytest.raises(DataError, match="there is no folder"):
        prepare_store("objects365", {"root": tmp_path / "none"})
    with pytest.raises(DataError, match=r"no zhiyuan_objv2_\*\.json"):
        prepare_store("objects365", {"root": tmp_path / "objects365" / "train"})
    write(root / "zhiyuan_objv2_val.json", [image(8, "images/v1/patch8/b.jpg")], [])
    with pytest.raises(DataError, match="1 image ids are in zhiyuan_objv2_train"):
        prepare_store("objects365", {"root": root})
    (root / "zhiyuan_objv2_val.json").unlink()
    whole = (root / "zhiyuan_objv2_train.json").read_text()
    (root / "zhiyuan_objv2_train.json").write_text(whole[:-200])
    with pytest.raises(DataError, match=r"zhiyuan_objv2_train\.json is not valid JSON"):
        prepare_store("objects365", {"root": root})


def test_counts_of_the_sample_are_the_expected_ones(shared: Path, prepare_store: Prepare) -> None:
    files = json.loads((shared / "data" / "expected_counts.json").read_text())["files"]
    expected = files["objects365/zhiyuan_objv2_train.json"]
    objects = expected["objects"]
    root = shared / "data" / "objects365"

    done = prepare_store("objects365", {"root": root})
    assert done.count("picture")["read"] == expected["images"]
    assert done.count("picture")["kept"] == expected["images_on_disk"]
    assert done.count("region")["read"] == objects["read"]
    assert done.count("region")["kept"] == objects["kept_on_images_present_on_disk"]
    gone = {"picture: missing": objects["kept"] - objects["kept_on_images_present_on_disk"]}
    assert done.dropped("region") == {
        **gone,
        "box outside the picture": objects["invalid_box"],
        "box too small": objects["box_below_1_percent"],
    }
    # The missing picture has one sound box, whatever the rule.
    for rule, key in (("int", "box_check_is_int"), ("half-px", "box_check_is_half_px")):
        done = prepare_store("objects365", {"root": root, "invalid_boxes": rule})
        assert done.count("region")["kept"] + 1 == objects[f"kept_if_{key}"]
    done = prepare_store("objects365", {"root": root, "crowd": False})
    assert done.count("region")["kept"] + 1 == objects["kept_without_crowd_boxes"]
