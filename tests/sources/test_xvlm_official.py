from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sources.conftest import Prepare
from xvlm_core.data.records import Region
from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources import xvlm_official

SHARED = Path(__file__).parents[3] / "shared" / "data"


def jpg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (160, 90), (200, 30, 30)).save(file, "JPEG")
    return file.getvalue()


def lines(path: Path, *values: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values),
        encoding="utf-8",
    )
    return path


def test_captions_with_paths(tmp_path: Path, pictures: Path, prepare_store: Prepare) -> None:
    folder = tmp_path / "general"
    lines(
        folder / "part-0",
        {"image_rpath": "ok.jpg", "caption": ["a man", "A person. "]},
        {"image_rpath": "other.png", "caption": "a dog"},
    )
    lines(folder / "part-1", {"image_rpath": "gone.jpg", "caption": ["x", "y"]})
    marked = b"\xef\xbb\xbf" + (folder / "part-1").read_bytes()
    (folder / "part-1").write_bytes(marked)
    (folder / "_SUCCESS").write_text("")
    (folder / "part-0_SUCCESS").write_text("")
    made = prepare_store("xvlm-official", {"root": [folder], "images": pictures})
    assert [(r.id, r.captions, r.image) for r in made.records] == [
        ("part-0:1", ("a man", "A person."), "ok.jpg"),
        ("part-0:2", ("a dog",), "other.png"),
    ]
    assert made.lost("picture") == {"part-1:1": "missing"}
    assert made.dropped("caption") == {"picture: missing": 2}
    assert made.count("line")["kept"] == 3
    assert made.manifest.image_root == str(pictures)


def test_pictures_in_base64(tmp_path: Path, prepare_store: Prepare) -> None:
    good = base64.b64encode(jpg()).decode()
    path = lines(
        tmp_path / "a.jsonl",
        {"binary": "not base64!!", "caption": "a"},
        {"binary": base64.b64encode(b"hello").decode(), "caption": "b"},
        {"binary": good, "desc": "not read", "caption": "c"},
        {"binary": 7, "caption": "d"},
    )
    made = prepare_store("xvlm-official", {"root": [path]})
    (record,) = made.records
    assert (record.id, record.captions) == ("a.jsonl:3", ("c",))
    assert (record.width, record.height) == (160, 90)
    assert made.lost("picture") == {"a.jsonl:1": "not base64", "a.jsonl:2": "not an image"}
    assert made.lost("line") == {"a.jsonl:4": "no image"}
    (written,) = tmp_path.glob("store-0/pictures/*")
    assert written.read_bytes() == jpg()


def test_regions_keep_every_text_and_attribute(
    tmp_path: Path, pictures: Path, prepare_store: Prepare
) -> None:
    path = lines(
        tmp_path / "a.jsonl",
        {
            "image_rpath": "ok.jpg",
            "caption": "a street",
            "elems": [
                {"caption": "car", "bb": [10, 20, 30.5, 40], "attributes": ["red", "old"]},
                {"caption": ["man", "person"], "bb": [0, 0, 160, 90]},
                {"caption": ["hat"], "bb": [1, 1, 2, 2], "attributes": "blue"},
            ],
        },
        {"image_rpath": "other.png", "elems": [{"caption": "dog", "bb": [1, 2, 3, 4]}]},
    )
    made = prepare_store("xvlm-official", {"root": [path], "images": pictures})
    car, whole, hat = (10.0, 20.0, 40.5, 60.0), (0.0, 0.0, 160.0, 90.0), (1.0, 1.0, 3.0, 3.0)
    assert made.records[0].captions == ("a street",)
    assert made.records[0].regions == (
        Region("car", car, "region"),
        Region("red car", car, "attribute"),
        Region("old car", car, "attribute"),
        Region("man", whole, "region"),
        Region("person", whole, "region"),
        Region("hat", hat, "region"),
        Region("blue hat", hat, "attribute"),
    )
    assert made.records[1].captions == ()
    assert made.ledger == []
    options = {"root": [path], "images": pictures, "attributes": False, "alternatives": False}
    assert prepare_store("xvlm-official", options).count("region")["kept"] == 4  # the elems


def test_every_loss_in_regions_is_counted(
    tmp_path: Path, pictures: Path, prepare_store: Prepare
) -> None:
    path = lines(
        tmp_path / "a.jsonl",
        {
            "image_rpath": "ok.jpg",
            "elems": [
                {"caption": "good", "bb": [0, 0, 10, 10]},
                {"caption": "outside", "bb": [150, 0, 11, 10]},
                {"caption": "flat", "bb": [0, 0, 0, 10]},
                {"caption": "three", "bb": [0, 0, 10]},
                {"caption": [], "bb": [0, 0, 10, 10]},
                {"bb": [0, 0, 10, 10]},
                {"caption": "!", "bb": [0, 0, 10, 10]},
                {"caption": ["x", 7], "bb": [0, 0, 10, 10], "attributes": [None]},
                "elem",
            ],
        },
        {"image_rpath": "other.png", "caption": "kept", "elems": "none"},
    )
    made = prepare_store("xvlm-official", {"root": [path], "images": pictures})
    assert [r.text for r in made.records[0].regions] == ["good", "x"]
    assert made.dropped("region") == {
        "box outside the picture": 1,
        "box has no area": 1,
        "box malformed": 1,
        "no text": 2,
        "empty text": 1,
        "text malformed": 3,
        "not an object": 1,
        "malformed elems": 1,
    }
    cut = prepare_store(
        "xvlm-official", {"root": [path], "images": pictures, "invalid_boxes": "clip"}
    )
    assert "outside" in [r.text for r in cut.records[0].regions]


def test_lines_that_are_no_records_are_named(
    tmp_path: Path, pictures: Path, prepare_store: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xvlm_official, "MAX_LINE", 200)
    path = tmp_path / "a.jsonl"
    good = b'{"image_rpath": "ok.jpg", "caption": "kept"}\r\n'
    path.write_bytes(
        b'\xef\xbb\xbf{"image_rpath": "ok.jpg", "text": \n'
        + good
        + b"\n[1]\n"
        + b'{"image_rpath": "", "caption": "x"}\n'
        + b'{"image_rpath": "ok.jpg", "caption": "\xe9"}\n'
        + b'{"image_rpath": "a", "image_rpath": "ok.jpg", "caption": "x"}\n'
        + b'{"caption": "'
        + b"x" * 500
        + b'"}\n'
        + good
        + b'{"image_rpath": "ok.jpg"}\n'
        + b'{"image_rpath": "../up.jpg", "caption": "x"}\n'
        + b'{"image_rpath": "ok.jpg", "cap'
    )
    made = prepare_store("xvlm-official", {"root": [path], "images": pictures})
    assert [r.id for r in made.records] == ["a.jsonl:2", "a.jsonl:9"]
    assert made.lost("line") == {
        "a.jsonl:1": "not JSON",
        "a.jsonl:4": "not an object",
        "a.jsonl:5": "no image",
        "a.jsonl:6": "not UTF-8",
        "a.jsonl:7": "repeated key",
        "a.jsonl:8": "too large",
        "a.jsonl:12": "not JSON",
    }
    assert made.lost("picture") == {
        "a.jsonl:10": "no text left",
        "a.jsonl:11": "outside the image root",
    }


def test_other_keys_can_be_said(tmp_path: Path, pictures: Path, prepare_store: Prepare) -> None:
    path = lines(
        tmp_path / "a.jsonl", {"image": "ok.jpg", "file": "other.png", "desc": "d", "t": "e"}
    )
    made = prepare_store("xvlm-official", {"root": [path], "images": pictures})
    assert (made.records[0].image, made.records[0].captions) == ("ok.jpg", ("d",))
    chosen = {"image_key": "file", "caption_key": "t", "split": "val"}
    made = prepare_store("xvlm-official", {"root": [path], "images": pictures, **chosen})
    assert (made.records[0].image, made.records[0].captions) == ("other.png", ("e",))
    assert made.records[0].split == "val"
    long = base64.b64encode(jpg()).decode()
    path = lines(tmp_path / "b.jsonl", {"img": long, "caption": "a"})
    made = prepare_store("xvlm-official", {"root": [path], "image_key": "img"})
    assert made.count("picture")["kept"] == 1


def test_lists_for_fine_tuning_have_one_record_a_picture(
    tmp_path: Path, pictures: Path, prepare_store: Prepare
) -> None:
    name = "val2014/COCO_val2014_000000391895.jpg"
    (pictures / "val2014").mkdir()
    (pictures / name).write_bytes(jpg())
    (pictures / "flickr30k-images").mkdir()
    (pictures / "flickr30k-images" / "8119368305.jpg").write_bytes(jpg())
    folder = tmp_path / "finetune"
    folder.mkdir()
    (folder / "coco_train.json").write_text(
        json.dumps(
            [
                {"image": name, "caption": "a man", "image_id": "coco_391895"},
                {"image": "ok.jpg", "caption": "a dog", "image_id": 7},
                7,
                {"caption": "no picture"},
                {"image": name, "caption": "a person", "image_id": "coco_391895"},
            ]
        )
    )
    (folder / "flickr30k_test.json").write_text(
        json.dumps([{"image": "flickr30k-images/8119368305.jpg", "caption": ["a", "b"]}])
    )
    (folder / "coco_val_gt.json").write_text('{"annotations": []}')
    made = prepare_store("xvlm-official", {"root": [folder], "images": pictures})
    first, second, third = made.records
    assert (first.id, first.captions) == (f"coco_train/{name}", ("a man", "a person"))
    assert (first.same_as, first.meta) == (("coco:391895",), {"image_id": "coco_391895"})
    assert (second.captions, second.meta, second.split) == (("a dog",), {"image_id": 7}, "train")
    assert (third.captions, third.same_as, third.split) == (
        ("a", "b"),
        ("flickr:8119368305",),
        "test",
    )
    assert made.lost("line") == {
        "coco_train.json[2]": "not an object",
        "coco_train.json[3]": "no image",
    }


@pytest.mark.parametrize(
    ("content", "chosen", "what", "try_"),
    [
        ("", {}, "a.jsonl is an empty file", None),
        ("hello\n", {}, "none of the first lines of .*a.jsonl is a JSON object", None),
        ('{"img": "a", "caption": "b"}', {}, "no key known to hold a picture", "--image-key KEY"),
        ('{"image": "a", "words": "b"}', {}, "no key known to hold a caption", "--caption-key KEY"),
        (
            '{"image": "a", "caption": "b"}',
            {"image_key": "img"},
            "a.jsonl has no key 'img'",
            "--image-key KEY",
        ),
        ('[{"image": "ok.jpg", "caption": "b"}', {}, "not valid JSON", None),
    ],
)
def test_a_file_of_another_kind_is_an_error(
    tmp_path: Path,
    pictures: Path,
    prepare_store: Prepare,
    content: str,
    chosen: dict[str, Any],
    what: str,
    try_: str | None,
) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=what) as error:
        prepare_store(
            "xvlm-official", {"root": [tmp_path / "a.jsonl"], "images": pictures, **chosen}
        )
    assert error.value.try_ == try_
    if try_:
        assert str(error.value.where).startswith("its keys: im")


def test_missing_input_and_mixed_forms_are_errors(
    tmp_path: Path, pictures: Path, prepare_store: Prepare
) -> None:
    with pytest.raises(DataError, match=r"there is no .*none"):
        prepare_store("xvlm-official", {"root": [tmp_path / "none"]})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no file in"):
        prepare_store("xvlm-official", {"root": [tmp_path / "empty"]})
    path = lines(tmp_path / "in" / "a.jsonl", {"image_rpath": "ok.jpg", "caption": "a"})
    with pytest.raises(DataError, match="there is no folder") as error:
        prepare_store("xvlm-official", {"root": [path], "images": tmp_path / "none"})
    assert error.value.try_ == "--images FOLDER"
    lines(tmp_path / "in" / "b.jsonl", {"binary": "aaaa", "caption": "a"})
    with pytest.raises(UsageError, match=r"b\.jsonl holds its pictures and .*a\.jsonl names them"):
        prepare_store("xvlm-official", {"root": [tmp_path / "in"]})


shared = pytest.mark.skipif(not SHARED.is_dir(), reason="shared samples are absent")


@shared
@pytest.mark.parametrize(
    "name", ["general_path", "general_binary", "regions_path", "regions_binary"]
)
def test_shared_pretraining_files(prepare_store: Prepare, name: str) -> None:
    counts = json.loads((SHARED / "expected_counts.json").read_text())["files"]
    expected = counts[f"xvlm_official/pretrain/{name}"]
    chosen = {"images": SHARED, "attributes": False, "alternatives": False}
    folder = SHARED / "xvlm_official" / "pretrain" / name
    made = prepare_store("xvlm-official", {"root": [folder], **chosen})
    assert made.count("picture")["kept"] == expected["images"]
    assert made.count("caption")["kept"] == expected["captions"]
    if "elems" in expected:
        assert made.count("region")["read"] == expected["elems"]
        assert made.count("region")["kept"] == expected["elems_passing_the_official_box_check"]
    assert made.ledger == []


@shared
def test_shared_lists_for_fine_tuning(prepare_store: Prepare) -> None:
    counts = json.loads((SHARED / "expected_counts.json").read_text())["files"]
    for name in ("coco_train", "coco_val", "coco_test", "flickr30k_train", "flickr30k_val"):
        expected = counts[f"xvlm_official/finetune/{name}.json"]
        images = SHARED / ("coco_2014_images" if "coco" in name else "flickr30k")
        path = SHARED / "xvlm_official" / "finetune" / f"{name}.json"
        made = prepare_store("xvlm-official", {"root": [path], "images": images})
        assert made.count("line")["kept"] == expected["records"]
        assert made.count("picture")["kept"] == expected["images"]
        assert made.count("caption")["kept"] == expected["captions"]
        assert {r.split for r in made.records} == {name.split("_")[-1]}


@shared
def test_shared_bad_pictures_in_base64(prepare_store: Prepare) -> None:
    path = SHARED / "hostile" / "bad_binary.jsonl"
    made = prepare_store("xvlm-official", {"root": [path]})
    counts = json.loads((SHARED / "expected_counts.json").read_text())["files"]
    assert made.count("line")["read"] == counts["hostile/bad_binary.jsonl"]["lines"]
    assert len(made.records) == counts["hostile/bad_binary.jsonl"]["kept"]
    assert made.dropped("picture") == {"not base64": 1, "not an image": 1}
