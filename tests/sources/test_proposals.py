from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sources.conftest import Prepare
from xvlm_core.errors import DataError, UsageError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def name_of(id: int) -> str:
    return f"COCO_train2014_{id:012d}.jpg"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with instances.json and pictures 9 and 77, named as in 2014."""
    folder = tmp_path / "refcoco+"
    for id in (9, 77):
        path = folder / "train2014" / name_of(id)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (160, 90)).save(path)
    images = [{"id": id, "file_name": name_of(id), "width": 160, "height": 90} for id in (9, 77)]
    (folder / "instances.json").write_text(json.dumps({"images": images}))
    return folder


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


DETS = {
    "9": [[0, 11.25, 30.5, 40, 0.9, 1], [150, 80, 30, 30], [200, 1, 5, 5], [1, 2, 3], "box"],
    "77": [],
    "123": [[1, 2, 3, 4], [1, 2, 3, 4]],
    "x": [[1, 2, 3, 4]],
}


def test_boxes_by_image_id_are_a_record_a_picture(root: Path, prepare_store: Prepare) -> None:
    write(root / "dets.json", DETS)
    done = prepare_store("proposals", {"root": root})
    assert [(r.id, r.image, r.proposals_xyxy_px, r.same_as) for r in done.records] == [
        (
            "9",
            f"train2014/{name_of(9)}",
            ((0, 11.25, 30.5, 51.25), (150, 80, 160, 90)),  # cut to the picture
            ("coco:9",),
        ),
        ("77", f"train2014/{name_of(77)}", (), ("coco:77",)),
    ]
    assert (done.records[0].regions, done.records[0].split) == ((), "train")
    assert done.lost("proposal") == {
        "9[2]": "box has no area",
        "9[3]": "box malformed",
        "9[4]": "box malformed",
        "123[0]": "unknown image",
        "123[1]": "unknown image",
        "x[0]": "unknown image",
    }
    assert done.count("proposal")["read"] == 8


def test_files_may_be_named_and_lie_elsewhere(
    tmp_path: Path, root: Path, prepare_store: Prepare
) -> None:
    boxes = write(tmp_path / "boxes.json", {"77": [[1, 2, 3, 4]]})
    (root / "train2014" / name_of(77)).rename(root / "000000000077.jpg")
    done = prepare_store(
        "proposals",
        {
            "annotations": [boxes],
            "instances": root / "instances.json",
            "images": root,
            "split": "val",
            "box_format": "xyxy",
        },
    )
    assert [(r.image, r.split, r.proposals_xyxy_px) for r in done.records] == [
        ("000000000077.jpg", "val", ((1, 2, 3, 4),))
    ]


def test_a_stated_size_is_checked(root: Path, prepare_store: Prepare) -> None:
    write(root / "dets.json", {"9": [[1, 2, 3, 4]], "77": [[1, 2, 3, 4]]})
    Image.new("RGB", (80, 45)).save(root / "train2014" / name_of(9))
    done = prepare_store("proposals", {"root": root})
    assert done.lost("picture") == {"9": "size mismatch"}
    assert done.dropped("proposal") == {"picture: size mismatch": 1}


def test_pictures_may_be_named_by_a_pattern(root: Path, prepare_store: Prepare) -> None:
    (root / "instances.json").unlink()
    write(root / "dets.json", {"9": [[1, 2, 3, 4]], "x": [[1, 2, 3, 4]]})
    done = prepare_store("proposals", {"root": root, "names": "COCO_train2014_{id:012d}.jpg"})
    assert [r.image for r in done.records] == [f"train2014/{name_of(9)}"]
    assert done.lost("proposal") == {"x[0]": "unknown image"}


@pytest.mark.parametrize(
    "names",
    ["a.jpg", "{id.__class__}.jpg", "{0}.jpg", "{id}{id}.jpg", "{id:q}.jpg", "{id", "{id:9999d}"],
)
def test_a_pattern_without_one_plain_id_is_refused(
    root: Path, prepare_store: Prepare, names: str
) -> None:
    write(root / "dets.json", {"9": [[1, 2, 3, 4]]})
    with pytest.raises(UsageError, match="is no pattern with one "):
        prepare_store("proposals", {"root": root, "names": names})


def test_boxes_that_are_no_list_are_counted(root: Path, prepare_store: Prepare) -> None:
    write(root / "dets.json", {"9": {"boxes": []}, "77": [[1, 2, 3, 4]]})
    done = prepare_store("proposals", {"root": root})
    assert [r.id for r in done.records] == ["77"]
    assert done.lost("proposal") == {"dets.json: 9": "malformed boxes"}


LINES = [
    '{"image": "train2014/COCO_train2014_000000000009.jpg", "boxes": [[1, 2, 30, 40]]}',
    "",
    '{"image": "./train2014/COCO_train2014_000000000077.jpg", "boxes": [], "width": 160, '
    '"height": 90}',
    '{"boxes": [[1, 2, 3, 4]]}',
    '{"image": "a.jpg", "boxes": 3}',
    '{"image": "a.jpg"',
    "[1]",
    '{"image": "none.jpg", "boxes": [[1, 2, 3, 4], [5, 6, 7, 8]]}',
]


@pytest.mark.parametrize("name", ["boxes.jsonl", "boxes.json"])
def test_json_lines_name_their_pictures(
    tmp_path: Path, root: Path, prepare_store: Prepare, name: str
) -> None:
    path = tmp_path / name
    path.write_text("\ufeff" + "\r\n".join(LINES) + "\r\n", encoding="utf-8")
    done = prepare_store("proposals", {"annotations": [path], "images": root})
    assert [(r.id, r.image, r.proposals_xyxy_px) for r in done.records] == [
        (f"train2014/{name_of(9)}", f"train2014/{name_of(9)}", ((1, 2, 30, 40),)),
        (f"train2014/{name_of(77)}", f"train2014/{name_of(77)}", ()),
    ]
    assert done.records[0].same_as == ("coco:9",)
    assert done.lost("line") == {
        f"{name}:4": "no image",
        f"{name}:5": "malformed boxes",
        f"{name}:6": "not JSON",
        f"{name}:7": "not an object",
    }
    assert done.count("line")["kept"] == 3
    assert done.lost("picture") == {"none.jpg": "missing"}
    assert done.dropped("proposal") == {"picture: missing": 2}


def test_jsonl_files_may_begin_with_any_key(
    tmp_path: Path, root: Path, prepare_store: Prepare
) -> None:
    picture = f"train2014/{name_of(9)}"
    path = write(tmp_path / "a.jsonl", {"by": "me", "image": picture, "boxes": [[1, 2, 3, 4]]})
    done = prepare_store("proposals", {"annotations": [path], "images": root})
    assert done.records[0].proposals_xyxy_px == ((1, 2, 3, 4),)


def test_other_box_formats(tmp_path: Path, root: Path, prepare_store: Prepare) -> None:
    picture = f"train2014/{name_of(9)}"
    path = write(tmp_path / "a.jsonl", {"image": picture, "boxes": [[0.5, 0.5, 0.5, 1]]})
    options = {"annotations": [path], "images": root}
    done = prepare_store("proposals", {**options, "box_format": "cxcywh", "box_unit": "fraction"})
    assert done.records[0].proposals_xyxy_px == ((40, 0, 120, 90),)
    write(path, {"image": picture, "boxes": [[10, 20, 30, 40]]})
    done = prepare_store("proposals", {**options, "box_format": "xywh"})
    assert done.records[0].proposals_xyxy_px == ((10, 20, 40, 60),)


def test_what_is_missing_is_told(tmp_path: Path, root: Path, prepare_store: Prepare) -> None:
    with pytest.raises(DataError, match=r"no dets\.json in"):
        prepare_store("proposals", {"root": root})
    with pytest.raises(UsageError, match="was not said"):
        prepare_store("proposals", {"images": root})
    with pytest.raises(DataError, match="there is no folder"):
        prepare_store("proposals", {"root": tmp_path / "none"})
    boxes = write(root / "dets.json", DETS)
    with pytest.raises(UsageError, match="how pictures are named") as caught:
        prepare_store("proposals", {"annotations": [boxes], "images": root})
    assert "--instances" in str(caught.value.try_)
    assert "--names" in str(caught.value.try_)
    options = {"root": root, "instances": root / "instances.json", "names": "{id}.jpg"}
    with pytest.raises(UsageError, match="both name the pictures"):
        prepare_store("proposals", options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="none of the first 2 pictures") as nowhere:
        prepare_store("proposals", {"root": root, "images": tmp_path / "empty"})
    assert f"train2014/{name_of(9)}" in nowhere.value.what
    boxes.write_text('{"9": [[1, 2')
    with pytest.raises(DataError, match="is not valid JSON"):
        prepare_store("proposals", {"root": root})
    with pytest.raises(DataError, match="cannot read"):
        prepare_store("proposals", {"annotations": [tmp_path / "none.json"], "images": root})


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared")
@pytest.mark.parametrize("name", ["refcoco+/dets.json", "refcoco+/cocos.json"])
def test_samples_have_the_expected_counts(prepare_store: Prepare, name: str) -> None:
    expected = json.loads((SHARED / "expected_counts.json").read_text())["files"][name]
    options = {
        "root": SHARED / "refcoco+",
        "annotations": [SHARED / name],
        "images": SHARED / "coco_2014_images",
    }
    done = prepare_store("proposals", options)
    assert len(done.records) == expected["images"]
    assert done.count("proposal") == {
        "read": expected["boxes"],
        "kept": expected["boxes"],
        "dropped": {},
        "repaired": {},
    }
