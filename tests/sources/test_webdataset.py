from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.sources.conftest import Prepare
from xvlm_core.data.records import Region
from xvlm_core.errors import DataError
from xvlm_core.sources import webdataset

SHARED = Path(__file__).parents[3] / "shared" / "data"


def jpg(width: int = 16, height: int = 9) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(file, "JPEG")
    return file.getvalue()


def write(path: Path, members: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_pictures_stay_in_the_tar(tmp_path: Path, prepare_store: Prepare) -> None:
    picture = jpg()
    path = write(tmp_path / "in" / "a.tar", {"x/0.jpg": picture, "x/0.txt": "A man.\n"})
    made = prepare_store("webdataset", {"root": [path]})
    (record,) = made.records
    assert (record.id, record.captions, record.split) == ("a/x/0", ("A man.",), "train")
    assert (record.width, record.height, record.source) == (16, 9, "webdataset")
    assert record.image == f"a.tar@512+{len(picture)}"
    assert path.read_bytes()[512:][: len(picture)] == picture
    assert made.manifest.image_root == str(tmp_path / "in")


def test_ids_tell_the_tars_of_a_folder_apart(tmp_path: Path, prepare_store: Prepare) -> None:
    for name in ("b/0.tar", "a/0.tar", "a/1.tar"):
        write(tmp_path / "in" / name, {"0.jpg": jpg(), "0.txt": name})
    made = prepare_store("webdataset", {"root": [tmp_path / "in"], "split": "val"})
    assert {r.id: r.captions[0] for r in made.records} == {
        "a/0/0": "a/0.tar",
        "a/1/0": "a/1.tar",
        "b/0/0": "b/0.tar",
    }
    assert {r.split for r in made.records} == {"val"}


@pytest.mark.parametrize(
    ("texts", "options", "captions"),
    [
        ({"json": '{"caption": "a"}'}, {}, ["a"]),
        ({"json": '{"text": ["a", "b"]}'}, {}, ["a", "b"]),
        ({"json": '{"TEXT": "c", "caption": null}'}, {}, ["c"]),
        ({"json": '{"caption": "a"}', "txt": "t"}, {}, ["t"]),
        ({"json": '{"own": "o", "caption": "a"}', "txt": "t"}, {"caption_key": ["own"]}, ["o"]),
        ({"json": '{"caption": "a"}', "txt": "t"}, {"caption_key": ["own"]}, ["t"]),
        ({"txt": b"\xef\xbb\xbfmarked"}, {}, ["marked"]),
        ({"cls": "1"}, {"classes": "classes.txt"}, ["dog"]),
    ],
)
def test_where_captions_come_from(
    tmp_path: Path,
    prepare_store: Prepare,
    texts: dict[str, bytes | str],
    options: dict[str, object],
    captions: list[str],
) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    if "classes" in options:
        options = {"classes": tmp_path / "classes.txt"}
    path = write(tmp_path / "a.tar", {"0.jpg": jpg(), **{f"0.{e}": t for e, t in texts.items()}})
    made = prepare_store("webdataset", {"root": [path], **options})
    assert list(made.records[0].captions) == captions
    assert made.ledger == []


def test_every_loss_is_counted_with_its_reason(
    tmp_path: Path, prepare_store: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset, "MAX_TEXT", 100)
    path = write(
        tmp_path / "a.tar",
        {
            "good.jpg": jpg(),
            "good.txt": "good",
            "alone.jpg": jpg(),
            "words.txt": "no picture",
            "empty.jpg": b"",
            "empty.txt": "empty picture",
            "page.jpg": b"<html>",
            "page.txt": "a page",
            "latin.jpg": jpg(),
            "latin.txt": "caf\xe9".encode("latin-1"),
            "long.jpg": jpg(),
            "long.txt": "x" * 101,
            "broken.jpg": jpg(),
            "broken.json": "{",
            "list.jpg": jpg(),
            "list.json": "[]",
            "list.txt": "kept",
            "null.jpg": jpg(),
            "null.json": '{"caption": ["", 7]}',
            "class.jpg": jpg(),
            "class.cls": "2",
            "two.jpg": jpg(),
            "two.png": jpg(),
            "two.txt": "two",
            "array.npy": b"x",
            "../up.jpg": jpg(),
            "../up.txt": "up",
        },
    )
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    made = prepare_store("webdataset", {"root": [path], "classes": tmp_path / "classes.txt"})
    assert [r.id for r in made.records] == ["a/good", "a/list", "a/two"]
    assert made.lost("picture") == {
        "a.tar:../up.jpg": "outside the image root",
        "a.tar:two.png": "more than one picture",
        "a/alone": "no text",
        "a/empty": "empty file",
        "a/page": "not an image",
        "a/latin": "no text",
        "a/long": "no text",
        "a/broken": "no text",
        "a/null": "no text left",
        "a/class": "no text",
    }
    assert made.dropped("caption") == {
        "outside the image root": 1,
        "no image": 1,
        "picture: empty file": 1,
        "picture: not an image": 1,
        "not UTF-8": 1,
        "too large": 1,
        "empty text": 1,
        "text malformed": 1,
        "unknown category": 1,
    }
    assert made.lost("line") == {
        "a/broken.json": "not JSON",
        "a/list.json": "not an object",
        "a/array": "no image",
    }


def test_a_cut_tar_gives_its_whole_samples(tmp_path: Path, prepare_store: Prepare) -> None:
    path = write(
        tmp_path / "a.tar", {"0.jpg": jpg(), "0.txt": "a", "1.jpg": jpg(), "1.txt": "b" * 2000}
    )
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"bbb") + 10])
    made = prepare_store("webdataset", {"root": [path]})
    assert [r.id for r in made.records] == ["a/0"]
    assert made.lost("line") == {"a.tar:1.txt": "unexpected end"}
    assert made.lost("picture") == {"a/1": "unexpected end"}


def test_a_packed_store_comes_back_whole(tmp_path: Path, prepare_store: Prepare) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(jpg(40, 30))
    lines = [
        {
            "id": "first",
            "image": "a.jpg",
            "captions": ["a man", "a person"],
            "regions": [{"text": "hat", "box_xyxy_px": [1, 2, 30, 20.5], "kind": "attribute"}],
            "absent": ["a dog"],
            "questions": [{"id": "q", "question": "who?", "answers": [{"answer": "he"}]}],
            "split": "val",
            "source": "mine",
            "meta": {"n": 1},
        },
        {"images": ["a.jpg", "b.jpg"], "statement": {"text": "they are equal", "label": True}},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {"annotations": [tmp_path / "a.jsonl"], "images": tmp_path, "pack": True}
    packed = prepare_store("jsonl", options)
    store = next(tmp_path.glob("store-0"))
    back = prepare_store("webdataset", {"root": [store]})
    assert len(back.records) == 2
    assert back.records[0].regions == (Region("hat", (1.0, 2.0, 30.0, 20.5), "attribute"),)
    plain = [dataclasses.replace(r, images=()) for r in packed.records]
    assert [dataclasses.replace(r, images=()) for r in back.records] == plain
    assert [r.images for r in back.records] == [r.images for r in packed.records]


def test_a_record_that_is_damaged_is_named(tmp_path: Path, prepare_store: Prepare) -> None:
    record = {"id": "a", "image": "x", "width": 16, "height": 9, "split": "train", "source": ""}
    pair = {k: v for k, v in record.items() if k != "image"} | {"images": ["x", "y"]}
    path = write(
        tmp_path / "a.tar",
        {
            "0.jpg": jpg(),
            "0.json": json.dumps({**record, "regions": [{"text": "x", "box_xyxy_px": [1]}]}),
            "1.jpg": jpg(),
            "1.json": json.dumps(pair),
            "2.jpg": jpg(),
            "2.json": json.dumps({**record, "captions": ["good"]}),
        },
    )
    made = prepare_store("webdataset", {"root": [path]})
    assert [r.id for r in made.records] == ["a"]
    assert made.lost("picture") == {"a/0": "malformed box", "a/1": "no image"}


def test_a_record_without_texts_stays(tmp_path: Path, prepare_store: Prepare) -> None:
    record = {"id": "a", "image": "x", "width": 16, "height": 9, "split": "test", "source": "s"}
    path = write(
        tmp_path / "a.tar",
        {
            "0.jpg": jpg(),
            "0.json": json.dumps(record),
            "1.jpg": jpg(),
            "1.json": json.dumps({**record, "id": "b", "proposals_xyxy_px": [[1, 2, 3, 4]]}),
            "2.jpg": jpg(),
            "2.json": json.dumps({**record, "id": "c", "captions": ["!"]}),
        },
    )
    made = prepare_store("webdataset", {"root": [path]})
    assert [(r.id, r.split, r.source) for r in made.records] == [
        ("a", "test", "s"),
        ("b", "test", "s"),
    ]
    assert made.records[1].proposals_xyxy_px == ((1.0, 2.0, 3.0, 4.0),)
    assert made.lost("picture") == {"c": "no text left"}


def test_stores_of_any_number_of_processes_are_equal(
    tmp_path: Path, prepare_store: Prepare
) -> None:
    members: dict[str, bytes | str] = {}
    for i in range(9):
        members |= {f"{i}.jpg": jpg(), f"{i}.txt": str(i)}
    options = {"root": [write(tmp_path / "a.tar", members)], "shard_records": 4}
    one, two = (prepare_store("webdataset", {**options, "workers": n}) for n in (1, 2))
    assert one.records == two.records
    assert len(one.manifest.shards) == 3


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda f: None, r"there is no .tar file in .*in"),
        (lambda f: (f / "a.tar").write_bytes(b""), r"a\.tar is an empty file"),
        (lambda f: (f / "a.tgz").write_bytes(b"\x1f\x8b\x08"), r"a\.tgz is compressed \(gzip\)"),
        (lambda f: (f / "a.tar").write_text("x" * 600), r"a\.tar is not a tar file"),
        (lambda f: write(f / "a.tar.gz", {"0.jpg": "x"}), r"a\.tar\.gz is not named \.tar"),
    ],
)
def test_a_folder_without_sound_tars_is_an_error(
    tmp_path: Path, prepare_store: Prepare, make: object, what: str
) -> None:
    (tmp_path / "in").mkdir()
    make(tmp_path / "in")  # type: ignore[operator]
    with pytest.raises(DataError, match=what):
        prepare_store("webdataset", {"root": [tmp_path / "in"]})


def test_a_missing_tar_or_class_file_says_what_to_type(
    tmp_path: Path, prepare_store: Prepare
) -> None:
    with pytest.raises(DataError, match=r"there is no .*none\.tar") as error:
        prepare_store("webdataset", {"root": [tmp_path / "none.tar"]})
    assert ".tar" in str(error.value.try_)
    path = write(tmp_path / "a.tar", {"0.jpg": jpg(), "0.cls": "0"})
    with pytest.raises(DataError, match=r"cannot read .*none\.txt") as error:
        prepare_store("webdataset", {"root": [path], "classes": tmp_path / "none.txt"})
    assert error.value.try_ == "--classes FILE"


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared samples are absent")
def test_shared_tars(prepare_store: Prepare, tmp_path: Path) -> None:
    expected = json.loads((SHARED / "expected_counts.json").read_text())["files"]
    evil = prepare_store("webdataset", {"root": [SHARED / "hostile" / "evil.tar"]})
    assert len(evil.records) == expected["hostile/evil.tar"]["samples_kept"]
    assert evil.lost("picture")["evil/000000004"] == "empty file"
    assert evil.lost("caption")["evil/000000003"] == "no image"
    assert evil.lost("picture")["evil/000000002"] == "no text"
    assert evil.dropped("picture")["duplicate member"] == 1
    assert not list(tmp_path.rglob("*PWNED*"))
    cut = prepare_store("webdataset", {"root": [SHARED / "hostile" / "truncated.tar"]})
    assert len(cut.records) == expected["hostile/truncated.tar"]["whole_samples_before_the_cut"]
    assert cut.lost("line") == {"truncated.tar": "unexpected end"}
    cc3m = prepare_store("webdataset", {"root": [SHARED / "cc3m" / "00000.tar"]})
    assert cc3m.count("picture")["kept"] == expected["cc3m/00000.tar"]["images"]
    assert cc3m.count("caption")["kept"] == expected["cc3m/00000.tar"]["captions"]
