from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sources.conftest import Prepare
from xvlm_core.data.records import Statement
from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.registry import checked_options, find_source

SHARED = Path(__file__).parents[3] / "shared" / "data"


def line(id: str, label: object = "True", text: object = "Two dogs.", **more: Any) -> str:
    return json.dumps({"identifier": id, "sentence": text, "label": label, **more})


def pair(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(folder / f"{name}-img0.png")
    # Many pictures of NLVR2 are JPEG in spite of their names.
    Image.new("RGB", (20, 50)).save(folder / f"{name}-img1.png", format="JPEG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "nlvr2"
    root.mkdir()
    urls = {
        "left_url": "https://farm9.staticflickr.com/8_1/4127484314_1a2b3c4d5e_z.jpg",
        "right_url": "https://a.example.org/b.jpg?w=2",
    }
    train = [
        line("train-10-0-0", "True", directory=12, **urls),
        line("train-10-1-0", "False", directory=12),
        line("train-10-0-1", "False", "A cat.", directory=12),
    ]
    (root / "train.json").write_text("\n".join(train) + "\n")
    (root / "dev.json").write_text(line("dev-850-0-0") + "\n")
    (root / "test1.json").write_text(line("test1-0-1-0", "False") + "\n")
    for name in ("train-10-0", "train-10-1"):
        pair(root / "images" / "train" / "12", name)
    pair(root / "dev", "dev-850-0")
    pair(root / "test1", "test1-0-1")
    return root


def test_a_sentence_about_a_pair_is_one_record(root: Path, prepare_store: Prepare) -> None:
    done = prepare_store("nlvr2", {"root": root})
    first = done.records[0]
    assert (first.id, first.split, first.source) == ("train-10-0-0", "train", "nlvr2")
    folder = "images/train/12"
    assert first.images == (f"{folder}/train-10-0-img0.png", f"{folder}/train-10-0-img1.png")
    assert (first.width, first.height) == (40, 30)
    assert first.statement == Statement("Two dogs.", True)
    assert first.meta == {"pair": "train-10-0", "same_sentence": "train-10-0", "directory": 12}
    assert first.same_as == (
        "nlvr2:train-10-0-img0",
        "nlvr2:train-10-0-img1",
        "flickr:4127484314",
        "url:farm9.staticflickr.com/8_1/4127484314_1a2b3c4d5e_z.jpg",
        "url:a.example.org/b.jpg",
    )
    assert done.manifest.splits == {"train": 3, "val": 1, "test": 1}
    assert [r.statement and r.statement.label for r in done.records] == [
        True,
        False,
        False,
        True,
        False,
    ]
    assert done.count("pair") == {"read": 5, "kept": 5, "dropped": {}, "repaired": {}}
    assert done.count("line")["kept"] == 5


def test_pairs_and_sentences_of_a_set_can_be_put_together(
    root: Path, prepare_store: Prepare
) -> None:
    records = prepare_store("nlvr2", {"root": root}).records[:3]
    assert [r.meta["pair"] for r in records] == ["train-10-0", "train-10-1", "train-10-0"]
    assert [r.meta["same_sentence"] for r in records] == ["train-10-0", "train-10-0", "train-10-1"]


def test_a_pair_without_one_of_its_pictures_is_dropped(root: Path, prepare_store: Prepare) -> None:
    (root / "images" / "train" / "12" / "train-10-0-img1.png").unlink()
    (root / "dev" / "dev-850-0-img0.png").write_bytes(b"")
    done = prepare_store("nlvr2", {"root": root, "allow_damage": 1.0})
    assert done.lost("pair") == {
        "train-10-0-0": "missing",
        "train-10-0-1": "missing",
        "dev-850-0-0": "empty file",
    }
    assert done.count("pair")["read"] == 5


@pytest.mark.parametrize("label", [True, False, "true", "TRUE", "", 1, ["True"]])
def test_a_label_is_one_of_two_texts(root: Path, prepare_store: Prepare, label: object) -> None:
    with open(root / "train.json", "a") as file:
        file.write(line("train-10-1-1", label, directory=12) + "\n")
    done = prepare_store("nlvr2", {"root": root})
    assert done.lost("pair") == {"train-10-1-1": "malformed label"}
    assert done.count("line") == {"read": 6, "kept": 6, "dropped": {}, "repaired": {}}


def test_only_test_sentences_may_be_without_label(root: Path, prepare_store: Prepare) -> None:
    with open(root / "train.json", "a") as file:
        file.write(line("train-10-1-1", None, directory=12) + "\n")
    (root / "test2.json").write_text(line("test2-3-0-0", None) + "\n")
    pair(root / "images" / "test2", "test2-3-0")
    done = prepare_store("nlvr2", {"root": root})
    assert done.lost("pair") == {"train-10-1-1": "no label"}
    assert done.records[-1].statement == Statement("Two dogs.", None)
    assert done.records[-1].split == "test2"
    assert done.records[-1].images[0] == "images/test2/test2-3-0-img0.png"


def test_lines_and_pairs_that_cannot_be_used_are_lost_with_reasons(
    root: Path, prepare_store: Prepare
) -> None:
    bad = [
        b"{",
        b'["a"]',
        b'{"identifier": "dev-850-0-1", "identifier": "dev-850-0-2"}',
        b'{"sentence": "\xff"}',
        b'{"sentence": "A dog.", "label": "True"}',
        line("dev-850-0").encode(),
        line("../dev-850-0-1").encode(),
        line("dev-850-0-0", "False").encode(),
        line("dev-850-0-3", text=None).encode(),
        line("dev-850-0-4", text="?!").encode(),
        b"  ",
        line("dev-850-0-5").encode(),
    ]
    with open(root / "dev.json", "ab") as file:
        file.write(b"\r\n".join(bad))
    done = prepare_store("nlvr2", {"root": root})
    assert done.lost("line") == {
        "dev.json:2": "not JSON",
        "dev.json:3": "not an object",
        "dev.json:4": "repeated key",
        "dev.json:5": "not UTF-8",
    }
    assert done.lost("pair") == {
        "dev.json:6": "no image",
        "dev.json:7": "malformed identifier",
        "dev.json:8": "malformed identifier",
        "dev-850-0-0": "repeated id",
        "dev-850-0-3": "text malformed",
        "dev-850-0-4": "empty text",
    }
    assert [r.id for r in done.records if r.split == "val"] == ["dev-850-0-0", "dev-850-0-5"]
    assert done.count("line")["read"] == 3 + 1 + 11 + 1


def test_a_line_without_end_is_not_read_into_memory(
    root: Path, prepare_store: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xvlm_core.sources.nlvr2._MAX_LINE", 300)
    with open(root / "dev.json", "a") as file:
        file.write(line("dev-850-0-1", text="dog " * 500) + "\n" + line("dev-850-0-2") + "\n")
    done = prepare_store("nlvr2", {"root": root})
    assert done.lost("line") == {"dev.json:2": "too large"}
    assert done.records[4].id == "dev-850-0-2"


@pytest.mark.parametrize("place", ["images/train", "train"])
def test_training_pictures_may_lie_in_one_folder(
    root: Path, tmp_path: Path, prepare_store: Prepare, place: str
) -> None:
    images = tmp_path / "pictures"
    for name in ("train-10-0", "train-10-1"):
        pair(images / place, name)
    done = prepare_store("nlvr2", {"annotations": [root / "train.json"], "images": images})
    assert done.records[0].images[0] == f"{place}/train-10-0-img0.png"


def test_a_part_of_the_sentences_can_be_named(root: Path, prepare_store: Prepare) -> None:
    path = root / "balanced_dev.json"
    path.write_text(line("dev-850-0-0") + "\n")
    done = prepare_store("nlvr2", {"annotations": [path], "images": root, "split": "balanced"})
    assert [(r.id, r.split) for r in done.records] == [("dev-850-0-0", "balanced")]


def test_annotations_may_lie_in_the_folders_of_the_project(
    root: Path, prepare_store: Prepare
) -> None:
    (root / "nlvr2" / "data").mkdir(parents=True)
    for name in ("train", "dev", "test1"):
        (root / f"{name}.json").rename(root / "nlvr2" / "data" / f"{name}.json")
    assert len(prepare_store("nlvr2", {"root": root}).records) == 5


# ---------------------------------------------------------------------- lists of X-VLM


def listed(left: str, right: str, label: object = "True") -> dict[str, Any]:
    return {"sentence": "Two dogs.", "label": label, "images": [left, right]}


def test_lists_of_xvlm(root: Path, tmp_path: Path, prepare_store: Prepare) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    folder = "images/train/12"
    first = (f"{folder}/train-10-0-img0.png", f"{folder}/train-10-0-img1.png")
    second = (f"{folder}/train-10-1-img0.png", f"{folder}/train-10-1-img1.png")
    mixed = (first[0], second[1])
    train = [
        listed(*first),
        listed(*second, "False"),
        listed(*mixed),
        listed(*first, True),
        {"sentence": "A dog.", "label": "True", "images": [first[0]]},
        {"sentence": "A dog.", "label": "True"},
        "a pair",
    ]
    (lists / "nlvr_train.json").write_text(json.dumps(train))
    dev = [listed("images/dev/dev-850-0-img0.png", "images/dev/dev-850-0-img1.png")]
    (lists / "nlvr_dev.json").write_text(json.dumps(dev))
    done = prepare_store("nlvr2", {"root": lists, "images": root})
    assert [(r.id, r.split) for r in done.records] == [
        ("nlvr_train-0", "train"),
        ("nlvr_train-1", "train"),
        ("nlvr_train-2", "train"),
        ("nlvr_dev-0", "val"),
    ]
    assert done.records[0].images == first
    assert done.records[0].meta["pair"] == "train-10-0"
    assert done.records[0].meta["same_sentence"] == done.records[1].meta["same_sentence"]
    assert done.records[2].meta == {"pair": " ".join(mixed)}
    assert done.records[3].images[0] == "dev/dev-850-0-img0.png"
    assert done.records[0].same_as == ("nlvr2:train-10-0-img0", "nlvr2:train-10-0-img1")
    assert done.records[2].same_as == ("nlvr2:train-10-0-img0", "nlvr2:train-10-1-img1")
    assert done.lost("pair") == {
        "nlvr_train-3": "malformed label",
        "nlvr_train-4": "not two images",
        "nlvr_train-5": "no image",
        "nlvr_train-6": "not an object",
    }


def test_pictures_of_a_list_stay_inside_the_image_root(
    root: Path, tmp_path: Path, prepare_store: Prepare
) -> None:
    good = "dev/dev-850-0-img0.png"
    path = tmp_path / "mine.json"
    (tmp_path / "x.png").write_bytes((root / good).read_bytes())
    members = [listed("../x.png", good), listed(good, str(tmp_path / "x.png")), listed(good, good)]
    path.write_text(json.dumps(members))
    done = prepare_store("nlvr2", {"annotations": [path], "images": root})
    assert done.dropped("pair") == {"outside the image root": 1, "absolute path": 1}


# ---------------------------------------------------------------------- mistakes


def refused(**options: Any) -> DataError:
    source = find_source("nlvr2")
    values = checked_options(source, options)
    with pytest.raises(DataError) as error:
        list(source.plan({option.name: values[option.name] for option in source.options}).events)
    return error.value


def test_wrong_folders_and_files_are_named(root: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused(root=tmp_path / "none").what == f"there is no folder {tmp_path / 'none'}"
    error = refused(root=empty)
    assert "train.json, dev.json, test1.json in" in error.what
    assert str(empty) in error.what
    error = refused(root=root, images=empty)
    assert "pairs of train.json" in error.what
    assert "no images/train/12/train-10-0-img0.png" in error.what
    assert "--images FOLDER" in str(error.try_)
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({"text": "Two dogs.", "pictures": []}) + "\n")
    error = refused(annotations=[path], images=root)
    assert str(path) in error.what
    assert "text, pictures" in str(error.where)
    path.write_text(" ")
    assert "is an empty file" in refused(annotations=[path], images=root).what
    assert "cannot read" in refused(annotations=[tmp_path / "no.json"], images=root).what
    path.write_text(json.dumps([listed("dev/dev-850-0-img0.png", "b.png")])[:-5])
    assert "odd.json is not valid JSON" in refused(annotations=[path], images=root).what


def test_nothing_said_is_a_usage_error(root: Path) -> None:
    source = find_source("nlvr2")
    for given in ({}, {"images": root}, {"annotations": [root / "dev.json"]}):
        values = checked_options(source, given)
        with pytest.raises(UsageError) as error:
            source.plan(values)
        assert "--images FOLDER" in str(error.value.try_)


# ---------------------------------------------------------------------- the shared samples


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared samples")
def test_shared_samples_have_the_expected_counts_in_either_form(prepare_store: Prepare) -> None:
    expected = json.loads((SHARED / "expected_counts.json").read_text())["files"]
    folder = SHARED / "nlvr2"
    raw = prepare_store("nlvr2", {"root": folder})
    lists = prepare_store("nlvr2", {"root": folder / "xvlm", "images": folder})
    for split, name in (("train", "train"), ("val", "dev"), ("test", "test1")):
        records = [r for r in raw.records if r.split == split]
        counts = expected[f"nlvr2/{name}.json"]
        assert len(records) == counts["statements"]
        assert (
            sum(r.statement is not None and r.statement.label is True for r in records)
            == (counts["true"])
        )
        assert len({r.meta["pair"] for r in records}) == counts["image_pairs"]
        assert len({path for r in records for path in r.images}) == counts["images"]
        listed_name = f"nlvr2/xvlm/nlvr_{name.removesuffix('1')}.json"
        others = [r for r in lists.records if r.split == split]
        assert len(others) == expected[listed_name]["statements"]
        assert [(r.images, r.statement) for r in others] == [
            (r.images, r.statement) for r in records
        ]
    assert raw.dropped("pair") == {} == raw.dropped("line")
