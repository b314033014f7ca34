from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sources.conftest import Prepare, Prepared
from xvlm_core.data.ledger import is_damage
from xvlm_core.data.records import Region
from xvlm_core.errors import DataError
from xvlm_core.sources.registry import checked_options, find_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder."""
    made = tmp_path / "mine"
    made.mkdir()
    return made


def put(folder: Path, name: str, **beside: str) -> None:
    """A picture of 160 x 90, and files beside it by suffix."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (160, 90), (200, 30, 30)).save(path)
    for suffix, text in beside.items():
        path.with_suffix(f".{suffix}").write_text(text, encoding="utf-8")


@pytest.fixture
def convert(folder: Path, prepare_store: Prepare) -> Any:
    def run(**options: Any) -> Prepared:
        return prepare_store("image-folder", {"root": folder, **options})

    return run


def test_texts_beside_the_pictures_become_captions_and_regions(folder: Path, convert: Any) -> None:
    put(folder, "b.jpg", txt="a dog\n\n a beach \r\n")
    put(folder, "sub/deep/a.PNG", json='{"caption": "the sea"}')
    regions = [{"text": "a dog", "box": [1, 2, 29, 38]}, {"text": "x", "box": [1]}]
    put(folder, "c.jpg", json=json.dumps({"captions": ["p", "q"], "regions": regions}, indent=1))
    done = convert(box_format="xywh")
    assert [r.id for r in done.records] == ["b.jpg", "c.jpg", "sub/deep/a.PNG"]
    assert [r.captions for r in done.records] == [("a dog", "a beach"), ("p", "q"), ("the sea",)]
    assert done.records[1].regions == (Region("a dog", (1, 2, 30, 40), "phrase"),)
    assert {r.split for r in done.records} == {"train"}
    assert done.lost("region") == {"c.json": "box malformed"}


def test_a_picture_without_text_is_dropped_unless_asked_for(folder: Path, convert: Any) -> None:
    put(folder, "a.jpg", txt="a dog")
    put(folder, "b.jpg")
    put(folder, "c.jpg", txt=" \n")
    done = convert()
    assert done.lost("picture") == {"b.jpg": "no text", "c.jpg": "no text"}
    assert [r.id for r in convert(allow_empty=True).records] == ["a.jpg", "b.jpg", "c.jpg"]


def test_hidden_files_and_what_is_no_picture_are_not_looked_at(folder: Path, convert: Any) -> None:
    put(folder, "a.jpg", txt="a dog")
    put(folder, ".thumbs/b.jpg", txt="a dog")
    put(folder, "c.jpg", txt="a dog")
    (folder / "c.jpg").rename(folder / ".c.jpg")
    (folder / "notes.md").write_text("no picture")
    assert [r.id for r in convert().records] == ["a.jpg"]


def test_the_folder_gives_caption_and_split(folder: Path, convert: Any) -> None:
    for name in ("train/red_mug/1.jpg", "Validation/blue-cup/x/2.jpg", "test/3.jpg", "other/4.jpg"):
        put(folder, name)
    done = convert(labels_from="folder", split_from="folder", split="rest")
    assert {r.id: (r.split, r.captions) for r in done.records} == {
        "other/4.jpg": ("rest", ("other",)),
        "train/red_mug/1.jpg": ("train", ("red mug",)),
        "Validation/blue-cup/x/2.jpg": ("val", ("x",)),
    }
    assert done.lost("picture") == {"test/3.jpg": "no text"}
    done = convert(labels_from="folder")
    assert {r.captions for r in done.records} == {("red mug",), ("x",), ("test",), ("other",)}
    assert {r.split for r in done.records} == {"train"}


def test_lists_of_hugging_face_are_read_where_they_lie(folder: Path, convert: Any) -> None:
    for name in ("train/a.jpg", "train/b.jpg", "test/a.jpg"):
        put(folder, name)
    objects = {"bbox": [[1, 2, 29, 38], [1, 2, 0, 3]], "categories": ["dog", "cat"]}
    lines = [
        {"file_name": "a.jpg", "text": "a dog", "objects": objects},
        {"file_name": "./b.jpg", "captions": ["p", "q"], "objects": {"bbox": [[1]]}},
        {"file_name": "none.jpg", "text": "gone"},
        {"text": "no picture"},
    ]
    text = "\n".join(map(json.dumps, lines)) + "\n\n{broken\n"
    (folder / "train" / "metadata.jsonl").write_text(text)
    (folder / "test" / "metadata.jsonl").write_text('{"file_name": "a.jpg", "caption": "sea"}')
    done = convert(split_from="folder")
    assert {r.id: (r.split, r.captions) for r in done.records} == {
        "test/a.jpg": ("test", ("sea",)),
        "train/a.jpg": ("train", ("a dog",)),
        "train/b.jpg": ("train", ("p", "q")),
    }
    by_id = {r.id: r for r in done.records}
    assert by_id["train/a.jpg"].regions == (Region("dog", (1, 2, 30, 40), "object"),)
    assert done.dropped("region") == {"box has no area": 1, "malformed objects": 1}
    assert done.lost("picture") == {"train/none.jpg": "missing"}
    assert done.lost("line") == {
        "train/metadata.jsonl:4": "no image",
        "train/metadata.jsonl:6": "not JSON",
    }


def test_boxes_as_yolo_writes_them(folder: Path, convert: Any, tmp_path: Path) -> None:
    put(folder, "a.jpg", txt="1 0.3 0.45 0.4 0.7\n7 0.5 0.5 0.1 0.1\na dog\n0 0.9 0.5 0.5 0.1\n")
    (tmp_path / "classes.txt").write_text("cat\nred dog\n\n")
    done = convert(classes=tmp_path / "classes.txt")
    (region,) = done.records[0].regions
    assert (region.text, region.kind) == ("red dog", "object")
    assert region.box_xyxy_px == pytest.approx((16, 9, 80, 72))
    assert done.lost("region") == {
        "a.txt:2": "unknown category",
        "a.txt:3": "malformed region",
        "a.txt:4": "box outside the picture",
    }


def test_boxes_of_yolo_are_no_captions(folder: Path, convert: Any) -> None:
    for i in range(100):
        put(folder, f"{i:03}.jpg", txt="3 dogs")
    put(folder, "a.jpg", txt="1 0.3 0.45 0.4 0.7\n3 dogs\n")
    done = convert()
    assert done.records[-1].captions == ("3 dogs",)
    assert done.lost("caption") == {"a.txt:1": "numbers of a box (see --classes)"}


def test_boxes_of_yolo_without_names_of_classes_are_refused(folder: Path, convert: Any) -> None:
    put(folder, "images/train/a.jpg")
    put(folder, "images/train/b.jpg")
    with pytest.raises(DataError, match="nothing to keep"):
        convert()
    (folder / "data.yaml").write_text("names: [cat]")
    with pytest.raises(DataError, match=r"data\.yaml names classes") as caught:
        convert()
    assert caught.value.try_ == f"--classes {folder / 'data.yaml'}"
    assert len(convert(labels_from="folder").records) == 2
    assert len(convert(allow_empty=True).records) == 2
    (folder / "data.yaml").unlink()
    (folder / "labels/train").mkdir(parents=True)
    (folder / "labels/train/b.txt").write_text("\n1 0.3 0.45 0.4 0.7\n")
    with pytest.raises(DataError, match=r"labels/train/b\.txt has boxes") as caught:
        convert()
    assert str(caught.value.try_).startswith("--classes FILE")
    (folder / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r"labels/train/b\.txt has boxes") as caught:
        convert(labels_from="folder")
    assert caught.value.try_ == f"--classes {folder / 'classes.txt'}"
    with pytest.raises(DataError, match="nothing is said beside the pictures") as caught:
        convert(root=folder / "images")
    assert caught.value.try_ == f"xvlm prepare-data image-folder {folder} --classes FILE"


def test_captions_beside_the_pictures_need_no_classes(folder: Path, convert: Any) -> None:
    put(folder, "a.jpg", txt="a dog")
    (folder / "classes.txt").write_text("dog\n")
    assert convert().records[0].captions == ("a dog",)


@pytest.mark.parametrize("layout", ["images/{split}/{name}", "{split}/images/{name}"])
def test_the_layout_of_yolo_is_found(folder: Path, convert: Any, layout: str) -> None:
    for split, name in (("train", "a"), ("train", "none"), ("train", "empty"), ("valid", "b")):
        picture = layout.format(split=split, name=f"{name}.jpg")
        put(folder, picture)
        if name != "none":
            label = folder / picture.replace("images", "labels").replace(".jpg", ".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("" if name == "empty" else "1 0.3 0.45 0.4 0.7\n")
    (folder / "data.yaml").write_text("train: images/train\nnames:\n  0: cat\n  1: red dog\n")
    done = convert(classes=folder / "data.yaml")
    assert {r.id: r.split for r in done.records} == {
        layout.format(split="train", name="a.jpg"): "train",
        layout.format(split="valid", name="b.jpg"): "val",
    }
    assert {r.regions[0].text for r in done.records} == {"red dog"}
    assert set(done.lost("picture").values()) == {"no text left"}
    assert not any(map(is_damage, done.dropped("picture")))
    done = convert(classes=folder / "data.yaml", split_from="none", split="Testing")
    assert {r.split for r in done.records} == {"test"}
    assert len(convert(classes=folder / "data.yaml", allow_empty=True).records) == 4


def test_labels_never_lie_outside_the_folder(folder: Path, convert: Any, tmp_path: Path) -> None:
    put(folder, "images/a.jpg")
    put(folder, "images/b.jpg", txt="0 0.3 0.45 0.4 0.7")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").write_text("0 0.3 0.45 0.4 0.7")
    (folder / "labels").symlink_to(tmp_path / "out")
    (tmp_path / "names.txt").write_text("cat")
    done = convert(classes=tmp_path / "names.txt")
    assert [r.id for r in done.records] == ["images/b.jpg"]
    assert done.lost("caption") == {"labels/a.txt": "outside the image root"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: 3", "has no list of class names under 'names'"),
        ("train: x", "has no list of class names"),
        ("names: {0: cat, 2: dog}", "has no list of class names"),
        ("names: [cat, [dog]]", "has no list of class names"),
        ("names: [", "is not readable as YAML"),
        ("- cat", "has no list of class names"),
        ("names: !!timestamp cat", "is not readable as YAML"),
        ("names: !!python/object:os.system [cat]", "is not readable as YAML"),
    ],
)
def test_a_data_yaml_without_names_is_refused(
    folder: Path, convert: Any, text: str, message: str
) -> None:
    put(folder, "a.jpg", txt="0 0.3 0.45 0.4 0.7")
    (folder / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        convert(classes=folder / "data.yaml")


@pytest.mark.parametrize("inner", ["", "train/"])
def test_annotations_of_coco_in_the_folder_are_named(
    folder: Path, convert: Any, inner: str
) -> None:
    put(folder, f"{inner}a.jpg")
    (folder / f"{inner}_annotations.coco.json").write_text("{}")
    (folder / "README.dataset.txt").write_text("about")
    with pytest.raises(DataError, match=r"_annotations\.coco\.json is there") as caught:
        convert()
    assert caught.value.try_ == f"xvlm prepare-data coco {folder}"
    put(folder, "b.jpg", txt="a dog")
    assert convert().records[0].captions == ("a dog",)


def test_damage_costs_what_is_damaged(folder: Path, convert: Any) -> None:
    put(folder, "a.jpg", json="{broken", txt="a dog")
    put(folder, "b.jpg", json="[1]", txt="a dog")
    put(folder, "c.jpg", json='{"captions": 3, "regions": 4}', txt="a dog")
    put(folder, "d.jpg")
    (folder / "d.txt").write_bytes("caf\xe9\na dog\n".encode("latin-1"))
    put(folder, "f.jpg", json='{"caption": "a dog"}')
    (folder / "f.txt").write_bytes("a cat\na cow\n".encode("utf-16"))
    (folder / "e.jpg").write_text("<html>")
    (folder / "e.txt").write_text("a dog")
    done = convert()
    assert [r.captions for r in done.records] == [("a dog",)] * 5
    assert done.lost("caption") == {
        "a.json": "not JSON",
        "b.json": "not an object",
        "c.json": "text malformed",
        "d.txt:1": "not UTF-8",
        "f.txt": "not UTF-8",
        "e.txt:1": "picture: not an image",
    }
    assert done.lost("region") == {"c.json": "malformed regions"}
    assert done.lost("picture") == {"e.jpg": "not an image"}


def test_links_never_leave_the_folder(folder: Path, convert: Any, tmp_path: Path) -> None:
    put(folder, "a.jpg", txt="a dog")
    put(tmp_path / "out", "secret.jpg", txt="secret")
    (folder / "b.jpg").symlink_to(tmp_path / "out" / "secret.jpg")
    (folder / "b.txt").write_text("a dog")
    put(folder, "c.jpg", json='{"caption": "a cat"}')
    (folder / "c.txt").symlink_to(tmp_path / "out" / "secret.txt")
    (folder / "up").symlink_to(tmp_path / "out")
    (folder / "again").symlink_to(folder)
    (folder / "d.jpg").symlink_to(folder / "a.jpg")
    (folder / "d.txt").symlink_to(folder / "a.txt")
    (folder / "sub").mkdir()
    (folder / "sub" / "metadata.jsonl").symlink_to(tmp_path / "out" / "secret.txt")
    (folder / "metadata.jsonl").write_text('{"file_name": "../out/secret.jpg", "text": "x"}\n')
    done = convert()
    assert {r.id: r.captions for r in done.records} == {
        "a.jpg": ("a dog",),
        "c.jpg": ("a cat",),
        "d.jpg": ("a dog",),
    }
    assert done.lost("picture") == {
        "up/": "outside the image root",
        "b.jpg": "outside the image root",
        "../out/secret.jpg": "outside the image root",
    }
    assert done.lost("line") == {"sub/metadata.jsonl": "outside the image root"}
    assert done.lost("caption")["c.txt"] == "outside the image root"


def test_what_is_no_folder_of_pictures_is_refused(
    folder: Path, convert: Any, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no picture in"):
        convert()
    with pytest.raises(DataError, match="there is no folder"):
        convert(root=tmp_path / "none")
    put(folder, "sub/a.jpg", txt="a dog")
    with pytest.raises(DataError, match="cannot read"):
        convert(classes=tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="is an empty file"):
        convert(classes=tmp_path / "empty.txt")
    (folder / "sub" / "metadata.csv").write_text("file_name,text\na.jpg,a dog\n")
    with pytest.raises(DataError, match="is a table") as caught:
        convert()
    assert caught.value.try_ == (
        f"xvlm prepare-data table {folder}/sub/metadata.csv --images {folder}/sub"
    )
    shutil.rmtree(folder / "sub")


def test_all_files_that_say_something_are_inputs(folder: Path, tmp_path: Path) -> None:
    """So that a run that stopped is not continued with other texts."""
    put(folder, "sub/a.jpg", txt="a dog", json="{}")
    (folder / "metadata.jsonl").write_text("")
    (tmp_path / "classes.txt").write_text("cat\n")
    source = find_source("image-folder")
    options = checked_options(source, {"root": folder, "classes": tmp_path / "classes.txt"})
    names = {path.name for path in source.plan(options).inputs}
    assert names == {"mine", "metadata.jsonl", "a.txt", "a.json", "classes.txt"}


def test_several_processes_make_the_same_store(folder: Path, convert: Any) -> None:
    for i in range(5):
        put(folder, f"{i}.jpg", **({"txt": f"text {i}"} if i != 3 else {}))
    (folder / "metadata.jsonl").write_text('{"file_name": "4.jpg", "text": "listed"}\n')
    one, two = (convert(workers=n, shard_records=2) for n in (1, 2))
    assert (one.records, one.ledger) == (two.records, two.ledger)
    assert one.records[-1].captions == ("listed", "text 4")


def test_pictures_in_formats_that_are_not_read_are_listed(
    tmp_path: Path, prepare_store: Prepare
) -> None:
    folder = tmp_path / "phone"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.jpg")
    (folder / "a.txt").write_text("a")
    for name in ("b.HEIC", "c.avif"):
        (folder / name).write_bytes(b"x")
    done = prepare_store("image-folder", {"root": folder})
    assert done.lost("picture") == {"b.HEIC": "format not read", "c.avif": "format not read"}
