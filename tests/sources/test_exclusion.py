from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from xvlm_core.data.looks import looks_of
from xvlm_core.data.records import Record
from xvlm_core.data.store import Store, StoreWriter
from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.exclusion import LOOKS_BITS, Exclusions, load_exclusions
from xvlm_core.sources.prepare import prepare

KARPATHY = {
    "dataset": "coco",
    "images": [
        {"cocoid": 11, "split": "train", "filename": "COCO_train2014_000000000011.jpg"},
        {"cocoid": 12, "split": "restval", "filename": "COCO_val2014_000000000012.jpg"},
        {"cocoid": 13, "split": "val", "filename": "COCO_val2014_000000000013.jpg"},
        {"cocoid": 14, "split": "test", "filename": "COCO_val2014_000000000014.jpg"},
    ],
}


def write(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def excluded(found: Exclusions, *same: str, id: str = "x", path: str = "x.jpg") -> bool:
    return found.name_of(id, [path], same) is not None


def test_of_a_karpathy_file_the_pictures_of_val_and_test_are_excluded(tmp_path: Path) -> None:
    found = load_exclusions([write(tmp_path / "dataset_coco.json", KARPATHY)])
    assert [excluded(found, f"coco:{i}") for i in (11, 12, 13, 14)] == [False, False, True, True]
    assert excluded(found, path="val2014/COCO_val2014_000000000013.jpg")
    assert not excluded(found, id="13"), "an id of some other data set"


def test_splits_can_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "dataset_coco.json", KARPATHY)
    test_only, all_of_it = load_exclusions([f"{path}:test"]), load_exclusions([f"{path}:all"])
    assert [excluded(test_only, f"coco:{i}") for i in (12, 13, 14)] == [False, False, True]
    assert all(excluded(all_of_it, f"coco:{i}") for i in (11, 12, 13, 14))
    with pytest.raises(DataError, match="no picture of testA") as caught:
        load_exclusions([f"{path}:testA"])
    assert caught.value.try_ == f"--exclude {path}:restval,test,train,val"


def test_flickr30k_is_found_by_the_photo(tmp_path: Path) -> None:
    images = [{"split": "test", "filename": "4127484314.jpg"}]
    found = load_exclusions([write(tmp_path / "d.json", {"dataset": "f", "images": images})])
    assert excluded(found, "vg:2", "flickr:4127484314")


@pytest.mark.parametrize(
    "content",
    ["coco:13\ncoco:14\r\n\n", "\ufeffval2014/COCO_val2014_000000000013.jpg\n000000000014.jpg"],
)
def test_a_list_has_a_name_a_line(tmp_path: Path, content: str) -> None:
    found = load_exclusions([write(tmp_path / "ids.txt", content)])
    assert excluded(found, "coco:13")
    assert excluded(found, "coco:14")
    assert not excluded(found, "coco:15", id="14")


def test_a_bare_number_is_the_id_of_a_record(tmp_path: Path) -> None:
    found = load_exclusions([write(tmp_path / "ids.txt", "13\n0014\n")])
    assert [excluded(found, id=id) for id in ("13", "14", "15")] == [True, True, False]
    assert not excluded(found, "coco:13")


def test_json_lists_and_the_released_lists(tmp_path: Path) -> None:
    ids = write(tmp_path / "ids.json", [13, "coco:14"])
    released = [{"image": "val2014/COCO_val2014_000000000015.jpg", "caption": ["a"]}]
    found = load_exclusions([ids, write(tmp_path / "coco_test.json", released)])
    assert excluded(found, id="13")
    assert excluded(found, "coco:14")
    assert excluded(found, "coco:15")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "a dog on the beach\n"),
        ("a.json", "{}"),
        ("a.json", "[]"),
        ("a.json", "[null]"),
        ("a.json", '{"images": [3]}'),
        ("a.json", "{broken"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(DataError, match=r"a\.(txt|json)"):
        load_exclusions([write(tmp_path / name, content)])
    with pytest.raises(DataError, match="no list of pictures"):
        load_exclusions([str(tmp_path / "gone.txt")])
    with pytest.raises(DataError, match="no prepared store"):
        load_exclusions([str(tmp_path)])


def test_a_list_without_splits_is_given_none(tmp_path: Path) -> None:
    path = write(tmp_path / "ids.txt", "13")
    with pytest.raises(UsageError, match="without splits"):
        load_exclusions([f"{path}:val"])


def make_store(folder: Path, *records: Record) -> str:
    with StoreWriter(folder, image_root=folder.parent, source="x", command="make") as writer:
        for record in records:
            writer.add(record)
    return str(folder)


def record(id: str, split: str, *same: str) -> Record:
    return Record(id, (f"pictures/{id}.jpg",), 4, 4, ("a",), split=split, same_as=same)


def test_a_store_excludes_its_held_out_pictures_by_name_or_file(tmp_path: Path) -> None:
    store = make_store(
        tmp_path / "s",
        record("1", "train", "coco:1"),
        record("2", "testA", "coco:2", "flickr:22222"),
        record("3", "val"),
    )
    found = load_exclusions([store])
    assert not excluded(found, "coco:1")
    assert excluded(found, "flickr:22222")
    assert excluded(found, path="pictures/3.jpg")
    assert not excluded(load_exclusions([f"{store}:val"]), "coco:2")


def test_names_of_one_photograph_are_joined_over_data_sets(tmp_path: Path) -> None:
    images = [{"id": 5, "flickr_url": "http://farm1.staticflickr.com/1/77777_ab.jpg"}]
    coco = write(tmp_path / "captions_train2017.json", {"images": images, "annotations": [1]})
    ids = write(tmp_path / "ids.txt", "flickr:77777")
    assert not excluded(load_exclusions([ids]), "coco:5")
    assert excluded(load_exclusions([ids], same_photos=[coco]), "coco:5")
    store = make_store(tmp_path / "s", record("1", "train", "coco:5", "vg:9"))
    assert excluded(load_exclusions([ids], same_photos=[store, coco]), "vg:9")
    assert not excluded(load_exclusions([ids], same_photos=[store]), "vg:9")


@pytest.mark.parametrize("looks", [0x0123456789ABCDEF, 0xFFFF0000FFFF0000])
@given(bits=st.lists(st.integers(0, 63), unique=True, max_size=8))
def test_looks_that_differ_in_few_bits_are_found(looks: int, bits: list[int]) -> None:
    other = looks
    for bit in bits:
        other ^= 1 << bit
    twin = Exclusions(looks=frozenset({looks})).twin_of(other)
    assert (twin is not None) == (len(bits) <= LOOKS_BITS)


def test_pictures_without_structure_are_twins_of_nothing() -> None:
    assert Exclusions(looks=frozenset({0, 1})).twin_of(0) is None


def scene(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (5, 7, 3), np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def test_a_smaller_copy_saved_again_is_left_out_by_its_looks(tmp_path: Path) -> None:
    for name in ("held", "mine"):
        (tmp_path / name).mkdir()
    for i in range(4):
        scene(i).save(tmp_path / "held" / f"{i}.png")
        lines = f'{{"image": "{i}.png", "text": "a", "split": "{"test" if i else "train"}"}}\n'
        with open(tmp_path / "held.jsonl", "a") as file:
            file.write(lines)
    for i in range(6):
        scene(i).resize((100, 75)).save(tmp_path / "mine" / f"other{i}.jpg", quality=60)
        with open(tmp_path / "mine.jsonl", "a") as file:
            file.write(f'{{"image": "other{i}.jpg", "text": "a"}}\n')
    held, mine = (
        {"annotations": [tmp_path / f"{n}.jsonl"], "images": tmp_path / n, "workers": 1}
        for n in ("held", "mine")
    )
    prepare("jsonl", tmp_path / "plain", held, command="make plain")
    with pytest.raises(UsageError, match="no perceptual hashes") as caught:
        load_exclusions([], [str(tmp_path / "plain")])
    assert caught.value.try_ == "make plain --phash --overwrite"
    prepare("jsonl", tmp_path / "looks", {**held, "phash": True}, command="x")
    options = {**mine, "exclude_like": (str(tmp_path / "looks"),)}
    manifest = prepare("jsonl", tmp_path / "store", options, command="x")
    store = Store.open(tmp_path / "store")
    store.verify()
    assert [store[i].image for i in range(len(store))] == [f"other{i}.jpg" for i in (0, 4, 5)]
    assert manifest.counts["picture"]["dropped"] == {"excluded": 3}
    assert manifest.counts["caption"]["dropped"] == {"picture: excluded": 3}
    assert manifest.excluded == (str(tmp_path / "looks"),)
    assert looks_of(tmp_path / "held" / "1.png") != looks_of(tmp_path / "held" / "2.png")


def test_own_pictures_are_found_by_the_names_of_their_files(tmp_path: Path) -> None:
    karpathy = load_exclusions([write(tmp_path / "dataset_coco.json", KARPATHY)])
    assert excluded(karpathy, path="mine/000000000013.jpg")
    assert not excluded(karpathy, path="mine/000000000011.jpg")
    store = make_store(
        tmp_path / "s",
        Record("1", ("4127484314.jpg",), 4, 4, ("a",), split="test", same_as=("flickr:41274843",)),
        Record("2", ("0.png",), 4, 4, ("a",), split="test"),
    )
    found = load_exclusions([store])
    assert excluded(found, path="photos/4127484314.jpg")
    assert excluded(found, path="0.png")
    assert not excluded(found, path="VG_100K/0.png"), "a name that says nothing"


def test_a_split_that_is_not_there_and_an_empty_list_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "dataset_coco.json", KARPATHY)
    with pytest.raises(DataError, match="no picture of tset"):
        load_exclusions([f"{path}:val,tset"])
    assert excluded(load_exclusions([f"{path}:val, test"]), "coco:14")
    with pytest.raises(DataError, match="empty list"):
        load_exclusions([write(tmp_path / "empty.txt", "\n \n")])


def test_what_is_held_out_itself_is_never_excluded(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    lines = ['{"image": "a.png", "text": "a", "split": "val"}', '{"image": "b.png", "text": "b"}']
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    ids = write(tmp_path / "ids.txt", "a.png\nb.png")
    options = {
        "annotations": [tmp_path / "mine.jsonl"],
        "images": tmp_path,
        "exclude": [ids],
        "workers": 1,
    }
    manifest = prepare("jsonl", tmp_path / "store", options, command="x")
    assert manifest.splits == {"val": 1}
    assert manifest.counts["picture"]["dropped"] == {"excluded": 1}


def test_the_second_picture_of_a_pair_is_looked_at_too(tmp_path: Path) -> None:
    for i in range(3):
        scene(i).save(tmp_path / f"{i}.png")
    held = tmp_path / "held.jsonl"
    held.write_text('{"image": "2.png", "text": "a", "split": "test"}')
    pairs = [
        {"images": names, "statement": {"text": "a dog", "label": True}}
        for names in (["0.png", "1.png"], ["0.png", "2.png"])
    ]
    mine = tmp_path / "mine.jsonl"
    mine.write_text("\n".join(map(json.dumps, pairs)))
    common = {"images": tmp_path, "workers": 1}
    prepare("jsonl", tmp_path / "h", {**common, "annotations": [held], "phash": True}, command="x")
    options = {**common, "annotations": [mine], "exclude_like": [str(tmp_path / "h")]}
    manifest = prepare("jsonl", tmp_path / "store", options, command="x")
    assert manifest.counts["pair"]["dropped"] == {"excluded": 1}
