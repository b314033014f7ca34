from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sources.conftest import Prepare
from tests.sources.test_coco import CATEGORIES, box, caption, image, write
from xvlm_core.data.records import Region
from xvlm_core.errors import DataError
from xvlm_core.sources.coco import plan
from xvlm_core.sources.coco_layout import Annotated
from xvlm_core.sources.drafts import Draft


def test_annotations_may_come_before_the_pictures_and_categories(
    pictures: Path, tmp_path: Path, prepare_store: Prepare
) -> None:
    content = {
        "annotations": [
            box(1, 2, [10, 10, 50, 50], 7),
            box(2, 1, [10, 10, 60, 60]),
            box(3, 2, [20, 20, 50, 50]),
            caption(4, 2, "A dog"),
        ],
        "images": [image(1), image(2, "other.png")],
        "categories": CATEGORIES,
    }
    (tmp_path / "a.json").write_text(json.dumps(content, indent=1))
    done = prepare_store("coco", {"annotations": [tmp_path / "a.json"], "images": pictures})
    assert [r.id for r in done.records] == ["1", "2"]
    assert done.records[1].captions == ("A dog",)
    assert done.records[1].regions == (
        Region("hot dog", (10, 10, 60, 60), "object"),
        Region("person", (20, 20, 70, 70), "object"),
    )


def test_a_picture_without_id_or_name_is_dropped_alone(
    pictures: Path, tmp_path: Path, prepare_store: Prepare
) -> None:
    images = [
        {"file_name": "ok.jpg"},
        {"id": 2},
        image("3"),  # type: ignore[arg-type]
        image(True),
        "ok.jpg",
        image(2**70),
        image(6),
    ]
    annotations = [box(1, 6, [0, 0, 90, 90]), box(2, 2, [0, 0, 90, 90])]
    file = write(tmp_path / "a.json", images, annotations)
    done = prepare_store("coco", {"annotations": [file], "images": pictures})
    assert [r.id for r in done.records] == ["6"]
    assert done.lost("picture") == {
        "a.json: images[0]": "no id",
        "a.json: images[1]": "no image",
        "a.json: images[2]": "no id",
        "a.json: images[3]": "no id",
        "a.json: images[4]": "not an object",
        "a.json: images[5]": "no id",
    }
    assert done.lost("region") == {"2": "unknown image"}


def test_a_size_may_be_a_whole_float_or_missing(
    pictures: Path, tmp_path: Path, prepare_store: Prepare
) -> None:
    images = [
        image(1, size=(160.0, 90.0)),  # type: ignore[arg-type]
        image(2, size=(161.0, 90.0)),  # type: ignore[arg-type]
        image(3, size=(160.5, 90)),  # type: ignore[arg-type]
        {"id": 4, "file_name": "ok.jpg"},
    ]
    annotations = [box(id, id, [0, 0, 90, 90]) for id in (1, 2, 3, 4)]
    file = write(tmp_path / "a.json", images, annotations)
    done = prepare_store("coco", {"annotations": [file], "images": pictures})
    assert [r.id for r in done.records] == ["1", "3", "4"]
    assert done.lost("picture") == {"2": "size mismatch"}


def drafts(options: dict[str, Any]) -> list[Draft]:
    full = {"root": None, "images": None, "annotations": (), "split": None, "crowd": True}
    events = plan({**full, **options}).events
    return [draft for event in events if isinstance(event, Annotated) for draft in event.expand()]


def test_a_photograph_of_coco_is_known_by_its_ids(pictures: Path, tmp_path: Path) -> None:
    flickr = "http://farm7.staticflickr.com/6116/6255196340_da26cf2c9e_z.jpg"
    url = "http://images.cocodataset.org/val2017/000000000013.jpg"
    images = [
        image(11, "000000000011.jpg") | {"flickr_url": flickr},
        image(12, "COCO_val2014_000000000012.jpg"),
        image(13, "13.jpg") | {"coco_url": url},
        image(14, "000000000099.jpg"),
        image(15, "mine_15.jpg"),
    ]
    file = write(tmp_path / "a.json", images, [])
    found = drafts({"annotations": (file,), "images": pictures})
    assert [draft.same_as for draft in found] == [
        ("coco:11", "flickr:6255196340"),
        ("coco:12",),
        ("coco:13",),
        (),
        (),
    ]


@pytest.mark.parametrize(
    ("annotations", "picture", "file_name", "split"),
    [
        ("annotations/instances_val2017.json", "val2017/000000000001.jpg", None, "val"),
        (
            "annotations/instances_val2014.json",
            "val2014/COCO_val2014_000000000001.jpg",
            None,
            "val",
        ),
        ("instances.json", "train2014/COCO_train2014_000000000001.jpg", None, "train"),
        ("annotations/instances_default.json", "images/a/b.jpg", "a/b.jpg", "train"),
        ("annotations/instances_default.json", "images/b.jpg", None, "train"),
        ("annotations/instances_default.json", "b.jpg", None, "train"),
        ("annotations/instances_validation.json", "images/validation/b.jpg", None, "val"),
        ("annotations/instances_Training.json", "images/Training/b.jpg", None, "train"),
        ("annotations/instances_dev.json", "images/dev/b.jpg", None, "val"),
        ("valid/_annotations.coco.json", "valid/b.jpg", None, "val"),
        ("Testing/_annotations.coco.json", "Testing/b.jpg", None, "test"),
        ("_annotations.coco.json", "b.jpg", None, "train"),
        ("result.json", "images/b.jpg", "images/b.jpg", "train"),
        ("result.json", "images/b.jpg", "images\\b.jpg", "train"),
        ("result.json", "images/b.jpg", "/data/local-files/upload/1/b.jpg", "train"),
        ("labels.json", "data/b.jpg", None, "train"),
    ],
)
def test_layouts_of_tools_are_found_by_themselves(
    tmp_path: Path,
    prepare_store: Prepare,
    annotations: str,
    picture: str,
    file_name: str | None,
    split: str,
) -> None:
    root = tmp_path / "export"
    for path in (root / annotations, root / picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (160, 90)).save(root / picture)
    categories = [{"id": 0, "name": "person", "supercategory": "none"}]
    entry = image(0, file_name or Path(picture).name)
    boxes = [box(0, 0, [10, 10, 80, 80], 0), box(1, 0, [], 0)]
    write(root / annotations, [entry], boxes, categories=categories)
    done = prepare_store("coco", {"root": root})
    assert [(r.id, r.image, r.split) for r in done.records] == [("0", picture, split)]
    assert done.records[0].regions == (Region("person", (10, 10, 90, 90), "object"),)
    assert done.lost("region") == {"1": "box has no area"}


def test_splits_that_count_from_0_each_keep_their_pictures_apart(
    tmp_path: Path, prepare_store: Prepare
) -> None:
    for folder, shade in (("train", 10), ("valid", 20), ("test", 30)):
        (tmp_path / "export" / folder).mkdir(parents=True)
        Image.new("RGB", (160, 90), (shade,) * 3).save(tmp_path / "export" / folder / "a.jpg")
        file = tmp_path / "export" / folder / "_annotations.coco.json"
        write(file, [image(0, "a.jpg")], [box(0, 0, [1, 1, 90, 80])])
    done = prepare_store("coco", {"root": tmp_path / "export"})
    assert [(r.id, r.image, r.split) for r in done.records] == [
        ("test/0", "test/a.jpg", "test"),
        ("train/0", "train/a.jpg", "train"),
        ("valid/0", "valid/a.jpg", "val"),
    ]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("annotations/instances_train2017.json", 1),
        ("annotations/instances_val2014.json", 1),
        ("annotations/instances_train.json", 2),
        ("annotations/instances_default.json", 2),
        ("train/_annotations.coco.json", 2),
        ("result.json", 2),
    ],
)
def test_the_rules_of_the_paper_are_for_the_files_of_coco(
    tmp_path: Path, prepare_store: Prepare, name: str, kept: int
) -> None:
    file = tmp_path / "export" / name
    file.parent.mkdir(parents=True)
    Image.new("RGB", (160, 90)).save(tmp_path / "export" / "a.jpg")
    boxes = [box(0, 0, [10, 10, 80, 80]), box(1, 0, [10, 10, 2, 2])]
    write(file, [image(0, "a.jpg")], boxes)
    done = prepare_store("coco", {"root": tmp_path / "export"})
    assert len(done.records[0].regions) == kept
    assert done.dropped("region") == ({} if kept == 2 else {"box too small": 1})
    done = prepare_store("coco", {"root": tmp_path / "export", "min_box_area": 0.01})
    assert done.dropped("region") == {"box too small": 1}


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("_annotations.coco.json", "a.jpg"),
        ("annotations/instances_default.json", "images/a.jpg"),
        ("result.json", "images/a.jpg"),
    ],
)
def test_a_file_is_enough_where_its_pictures_are_beside_it(
    tmp_path: Path, prepare_store: Prepare, name: str, picture: str
) -> None:
    file, path = (tmp_path / "export" / part for part in (name, picture))
    for folder in (file.parent, path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (160, 90)).save(path)
    write(file, [image(0, "a.jpg")], [box(0, 0, [10, 10, 80, 80])])
    for options in ({"root": file}, {"annotations": [file]}):
        assert [r.image for r in prepare_store("coco", options).records] == [picture]
    options = {"root": file, "images": path.parent}
    assert [r.image for r in prepare_store("coco", options).records] == ["a.jpg"]


def test_files_of_several_folders_have_their_pictures_below_both(
    tmp_path: Path, prepare_store: Prepare
) -> None:
    files = []
    for folder, shade in (("train", 10), ("valid", 20)):
        (tmp_path / "export" / folder).mkdir(parents=True)
        Image.new("RGB", (160, 90), (shade,) * 3).save(tmp_path / "export" / folder / "a.jpg")
        files.append(tmp_path / "export" / folder / "_annotations.coco.json")
        write(files[-1], [image(0, "a.jpg")], [box(0, 0, [1, 1, 90, 80])])
    done = prepare_store("coco", {"annotations": files})
    assert [(r.image, r.split) for r in done.records] == [
        ("train/a.jpg", "train"),
        ("valid/a.jpg", "val"),
    ]


def test_several_unknown_files_are_not_guessed_between(
    tmp_path: Path, prepare_store: Prepare
) -> None:
    for name in ("a.json", "b.json"):
        write(tmp_path / name, [], [])
    with pytest.raises(DataError, match=r"unclear: a\.json, b\.json") as caught:
        prepare_store("coco", {"root": tmp_path})
    assert caught.value.try_ == f"--annotations {tmp_path / 'a.json'}"
