from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sources.conftest import Prepare
from xvlm_core.data.records import Region
from xvlm_core.data.stream import Stream
from xvlm_core.errors import DataError, UsageError

SHARED = Path(__file__).parents[3] / "shared" / "data"
KITCHEN, STREET, BEACH = 9, 581857, 77
REFS = [
    (0, KITCHEN, 100, "train", [("woman on left", "Woman on left!"), ("lady", "lady")]),
    (1, KITCHEN, 101, "train", [("left cup", "LEFT cup")]),
    (2, STREET, 102, "val", [("red car", "red car")]),
    (3, STREET, 103, "testA", [("man", "man"), ("tall guy", "tall guy")]),
    (4, BEACH, 104, "testB", [("the umbrella", "the umbrella")]),
]


def name_of(image_id: int) -> str:
    return f"COCO_train2014_{image_id:012d}.jpg"


def ref(
    ref_id: int, image_id: int, ann_id: int, split: str, texts: list[tuple[str, str]]
) -> dict[str, Any]:
    return {
        "sent_ids": [10 * ref_id + n for n in range(len(texts))],
        "file_name": f"COCO_train2014_{image_id:012d}_{ref_id}.jpg",
        "ann_id": ann_id,
        "ref_id": ref_id,
        "image_id": image_id,
        "category_id": 1,
        "split": split,
        "sentences": [
            {"tokens": sent.split(), "raw": raw, "sent_id": 10 * ref_id + n, "sent": sent}
            for n, (sent, raw) in enumerate(texts)
        ],
    }


def instances() -> dict[str, Any]:
    boxes = [[10, 20, 30.5, 40], [1, 2, 3, 4], [0, 0, 160, 90], [5, 5, 20, 50], [7, 8, 9, 10]]
    images = [KITCHEN, KITCHEN, STREET, STREET, BEACH]
    return {
        "images": [
            {
                "id": id,
                "file_name": name_of(id),
                "width": 160,
                "height": 90,
                "flickr_url": f"http://farm7.staticflickr.com/6080/{1000 + id}_37b4c9_z.jpg",
            }
            for id in (KITCHEN, STREET, BEACH)
        ],
        "annotations": [
            {
                "id": 100 + n,
                "image_id": image,
                "category_id": 1 if n != 1 else 47,
                "bbox": box,
                "segmentation": [[1.0, 2.0]],
                "iscrowd": 0,
            }
            for n, (image, box) in enumerate(zip(images, boxes, strict=True))
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 47, "name": "cup"}],
    }


def write_refer(folder: Path, refs: Any = None, boxes: Any = None, by: str = "unc") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    refs = [ref(*r) for r in REFS] if refs is None else refs
    (folder / f"refs({by}).p").write_bytes(pickle.dumps(refs, 0))
    (folder / "instances.json").write_text(json.dumps(boxes or instances()))
    return folder


def draw(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (160, 90)).save(path)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Pictures named as in 2014."""
    draw(*(tmp_path / "coco" / "train2014" / name_of(id) for id in (KITCHEN, STREET, BEACH)))
    return tmp_path / "coco"


def test_every_expression_is_a_record_with_the_box_of_its_ref(
    tmp_path: Path, coco: Path, prepare_store: Prepare
) -> None:
    root = write_refer(tmp_path / "refcoco")
    done = prepare_store("refcoco", {"root": root, "images": coco})
    first = done.records[0]
    assert (first.id, first.image, first.split, first.source) == (
        "0-0",
        f"train2014/{name_of(KITCHEN)}",
        "train",
        "refcoco",
    )
    assert first.regions == (Region("woman on left", (10.0, 20.0, 40.5, 60.0), "phrase"),)
    assert (first.captions, first.proposals_xyxy_px) == ((), ())
    assert first.same_as == ("coco:9", "flickr:1009")
    assert first.meta == {"ref_id": 0, "ann_id": 100, "category": "person", "sent_id": 0}
    assert [(r.id, r.regions[0].text, r.split) for r in done.records] == [
        ("0-0", "woman on left", "train"),
        ("0-1", "lady", "train"),
        ("1-10", "left cup", "train"),
        ("2-20", "red car", "val"),
        ("3-30", "man", "testA"),
        ("3-31", "tall guy", "testA"),
        ("4-40", "the umbrella", "testB"),
    ]
    assert done.records[2].meta["category"] == "cup"
    assert done.records[2].regions[0].box_xyxy_px == (1, 2, 4, 6)  # small ones stay
    assert done.count("region") == {"read": 7, "kept": 7, "dropped": {}, "repaired": {}}


def test_texts_as_typed_can_be_asked_for(
    tmp_path: Path, coco: Path, prepare_store: Prepare
) -> None:
    root = write_refer(tmp_path / "refcoco")
    done = prepare_store("refcoco", {"root": root, "images": coco, "text": "raw"})
    texts = [r.regions[0].text for r in done.records]
    assert texts[:3] == ["Woman on left!", "lady", "LEFT cup"]


def test_of_several_refs_files_one_must_be_named(
    tmp_path: Path, coco: Path, prepare_store: Prepare
) -> None:
    root = write_refer(tmp_path / "refcocog", by="umd")
    write_refer(root, [ref(5, BEACH, 104, "train", [("sand", "sand")])], by="google")
    options = {"root": root, "images": coco}
    with pytest.raises(UsageError, match="has the splits of google, umd") as caught:
        prepare_store("refcoco", options)
    assert caught.value.try_ == "--by google or --by umd"
    with pytest.raises(DataError, match=r"no refs\(unc\)\.p") as lacking:
        prepare_store("refcoco", {**options, "by": "unc"})
    assert lacking.value.try_ == "--by google"
    done = prepare_store("refcoco", {**options, "by": "google"})
    assert [r.id for r in done.records] == ["5-50"]
    assert len(prepare_store("refcoco", {**options, "by": "umd"}).records) == 7


@pytest.mark.parametrize(
    "names",
    [
        [f"train2014/{name_of(KITCHEN)}", f"train2014/{name_of(STREET)}"],
        [f"images/train2014/{name_of(KITCHEN)}", f"images/train2014/{name_of(STREET)}"],
        [name_of(KITCHEN), name_of(STREET)],
        ["train2017/000000000009.jpg", "val2017/000000581857.jpg"],
        ["000000000009.jpg", "000000581857.jpg"],
        ["images/coco/train2017/000000000009.jpg", "images/coco/train2017/000000581857.jpg"],
    ],
)
def test_pictures_may_be_named_as_in_2014_or_2017(
    tmp_path: Path, prepare_store: Prepare, names: list[str]
) -> None:
    root = write_refer(tmp_path / "refcoco", [ref(*REFS[0]), ref(*REFS[2])])
    draw(*(tmp_path / "pictures" / name for name in names))
    done = prepare_store("refcoco", {"root": root, "images": tmp_path / "pictures"})
    assert [r.image for r in done.records] == [names[0], names[0], names[1]]


def test_pictures_that_are_nowhere_are_told_with_all_names_tried(
    tmp_path: Path, prepare_store: Prepare
) -> None:
    root = write_refer(tmp_path / "refcoco")
    with pytest.raises(DataError) as caught:
        prepare_store("refcoco", {"root": root})
    name = name_of(KITCHEN)
    for tried in (f"train2014/{name}", f"no {name}", "train2017/000000000009.jpg"):
        assert tried in caught.value.what
    assert "--images FOLDER" in str(caught.value.try_)


def test_without_an_entry_the_name_is_that_of_the_ref_without_its_number(
    tmp_path: Path, coco: Path, prepare_store: Prepare
) -> None:
    boxes = instances()
    boxes["images"] = [image for image in boxes["images"] if image["id"] != STREET]
    odd = ref(*REFS[4])
    odd["file_name"] = name_of(BEACH)  # no number added: nothing is cut
    boxes["images"] = boxes["images"][:1]
    root = write_refer(tmp_path / "refcoco", [ref(*REFS[2]), odd], boxes)
    done = prepare_store("refcoco", {"root": root, "images": coco})
    paths = [f"train2014/{name_of(STREET)}", f"train2014/{name_of(BEACH)}"]
    assert [r.image for r in done.records] == paths
    assert done.records[0].same_as == (f"coco:{STREET}",)


def test_what_cannot_be_used_is_counted_by_reason(
    tmp_path: Path, coco: Path, prepare_store: Prepare
) -> None:
    boxes = instances()
    boxes["annotations"][1]["image_id"] = 5555
    boxes["annotations"][2]["bbox"] = [150, 80, 11, 5]
    boxes["annotations"][3]["bbox"] = "none"
    refs: list[Any] = [ref(*r) for r in REFS]
    refs[1]["image_id"] = 5555
    refs[1]["file_name"] = None
    refs[4]["sentences"] += [
        "text",
        {"sent": "no id"},
        {"sent": "", "raw": "?", "sent_id": 42},
        {"raw": "no text", "sent_id": 43},
        {"sent": ["list"], "sent_id": 44},
    ]
    lost = ("a", "a")
    refs += [
        "ref",
        {**ref(5, BEACH, 104, "train", []), "sentences": 3},
        ref(6, BEACH, 999, "train", [lost, lost]),
        {**ref(7, BEACH, 104, "train", [lost]), "ref_id": None},
        {**ref(8, BEACH, 104, "train", [lost]), "split": ["train"]},
        ref(9, BEACH, 100, "train", [lost]),
    ]
    root = write_refer(tmp_path / "refcoco", refs, boxes)
    done = prepare_store("refcoco", {"root": root, "images": coco})
    assert [r.id for r in done.records] == ["0-0", "0-1", "4-40"]
    assert done.dropped("region") == {
        "unknown image": 1,
        "box outside the picture": 1,
        "box malformed": 2,
        "not an object": 2,
        "no id": 2,
        "empty text": 1,
        "text malformed": 2,
        "no text": 1,
        "unknown annotation": 2,
        "no split": 1,
        "annotation of another picture": 1,
    }
    assert done.lost("region")["refs(unc).p: refs[7]"] == "unknown annotation"


def test_a_box_past_the_edge_by_a_rounding_is_cut_not_lost(
    tmp_path: Path, coco: Path, prepare_store: Prepare
) -> None:
    boxes = instances()
    boxes["annotations"][0]["bbox"] = [100, 50, 60.2, 40]
    root = write_refer(tmp_path / "refcoco", [ref(*REFS[0])], boxes)
    done = prepare_store("refcoco", {"root": root, "images": coco})
    assert [r.regions[0].box_xyxy_px for r in done.records] == [(100, 50, 160, 90)] * 2
    assert done.count("region")["repaired"] == {"box cut to the picture": 2}
    with pytest.raises(DataError, match="nothing to keep"):
        prepare_store("refcoco", {"root": root, "images": coco, "invalid_boxes": "strict"})


def test_a_picture_of_another_size_is_refused(
    tmp_path: Path, coco: Path, prepare_store: Prepare
) -> None:
    Image.new("RGB", (80, 45)).save(coco / "train2014" / name_of(KITCHEN))
    root = write_refer(tmp_path / "refcoco")
    done = prepare_store("refcoco", {"root": root, "images": coco})
    assert done.dropped("picture") == {"size mismatch": 3}
    assert done.dropped("region") == {"picture: size mismatch": 3}


def test_a_pass_over_the_training_data_sees_every_expression_once(
    tmp_path: Path, coco: Path, prepare_store: Prepare
) -> None:
    refs = [ref(n, KITCHEN, 100, "train", [("a", "a"), ("b", "b")]) for n in range(20)]
    root = write_refer(tmp_path / "refcoco", [*refs, ref(20, STREET, 102, "val", [("c", "c")])])
    records = prepare_store("refcoco", {"root": root, "images": coco}).records
    train = [number for number, record in enumerate(records) if record.split == "train"]
    assert all(len(records[number].regions) == 1 for number in train)
    stream = Stream([len(train)], 5, seed=0, name="regions", block=4)
    for epoch in range(2):
        steps = range(epoch * stream.steps_per_epoch + 1, (epoch + 1) * stream.steps_per_epoch + 1)
        places = [place for step in steps for place in stream.places(step)]
        seen = Counter(records[train[place.record]].id for place in places)
        assert seen == {f"{n}-{10 * n + k}": 1 for n in range(20) for k in range(2)}


# ---------------------------------------------------------------------- wrong folders and files


def test_a_folder_of_several_data_sets_is_told_which_to_take(
    tmp_path: Path, prepare_store: Prepare
) -> None:
    write_refer(tmp_path / "refcoco+")
    with pytest.raises(DataError, match=r"no refs\(unc\)\.p") as caught:
        prepare_store("refcoco", {"root": tmp_path})
    assert caught.value.try_ == f"--root {tmp_path / 'refcoco+'}"
    (tmp_path / "refcoco+" / "instances.json").unlink()
    with pytest.raises(DataError, match=r"no instances\.json"):
        prepare_store("refcoco", {"root": tmp_path / "refcoco+"})
    with pytest.raises(DataError, match="there is no folder"):
        prepare_store("refcoco", {"root": tmp_path / "none"})
    with pytest.raises(UsageError, match="was not said"):
        prepare_store("refcoco", {"images": tmp_path})


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("echo > PWNED",)


def test_an_evil_refs_file_is_refused_and_not_run(
    tmp_path: Path, coco: Path, prepare_store: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_refer(tmp_path / "refcoco", [ref(*REFS[0]), Evil()])
    with pytest.raises(DataError, match=r"refs\(unc\)\.p wants to load \w+\.system: not read"):
        prepare_store("refcoco", {"root": root, "images": coco})
    assert not (tmp_path / "PWNED").exists()
    (root / "refs(unc).p").write_bytes(pickle.dumps([1, 2])[:-3])
    with pytest.raises(DataError, match="damaged pickle"):
        prepare_store("refcoco", {"root": root, "images": coco})
    (root / "refs(unc).p").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(DataError, match="is no list of refs but a dict"):
        prepare_store("refcoco", {"root": root, "images": coco})


def test_lists_that_are_shared_do_not_multiply(
    tmp_path: Path, coco: Path, prepare_store: Prepare
) -> None:
    one = ref(*REFS[0])
    one["sentences"] = one["sentences"] * 200
    root = write_refer(tmp_path / "refcoco", [one] * 200)
    with pytest.raises(DataError, match="the same lists again and again"):
        prepare_store("refcoco", {"root": root, "images": coco})
    long = ref(*REFS[0])
    long["sentences"][0]["sent"] = "x" * 10_000
    write_refer(root, [long] * 200)
    with pytest.raises(DataError, match="the same lists again and again"):
        prepare_store("refcoco", {"root": root, "images": coco})


def test_values_that_never_end_are_not_walked(
    tmp_path: Path, coco: Path, prepare_store: Prepare
) -> None:
    laughs: Any = ["ha"]
    for _ in range(60):
        laughs = [laughs] * 9
    endless: list[Any] = []
    endless.append(endless)
    refs: list[Any] = [ref(*REFS[0]), laughs, endless, {**ref(*REFS[1]), "ref_id": laughs}]
    refs.append({**ref(*REFS[2]), "split": endless, "image_id": laughs, "file_name": laughs})
    refs.append({**ref(*REFS[3]), "sentences": laughs})
    refs.append(ref(*REFS[4]))
    refs[-1]["sentences"][0]["sent"] = laughs
    refs[-1]["sentences"].append({"sent_id": endless})
    root = write_refer(tmp_path / "refcoco", refs)
    done = prepare_store("refcoco", {"root": root, "images": coco})
    assert [r.id for r in done.records] == ["0-0", "0-1"]


def test_one_id_for_two_boxes_is_an_error(
    tmp_path: Path, coco: Path, prepare_store: Prepare
) -> None:
    boxes = instances()
    boxes["annotations"].append({**boxes["annotations"][0], "bbox": [1, 1, 1, 1]})
    root = write_refer(tmp_path / "refcoco", None, boxes)
    with pytest.raises(DataError, match="gives the annotation id 100 to two different things"):
        prepare_store("refcoco", {"root": root, "images": coco})
    write_refer(root, None, {"images": []})
    with pytest.raises(DataError, match="has no images and no annotations"):
        prepare_store("refcoco", {"root": root, "images": coco})


# ---------------------------------------------------------------------- JSON of MDETR


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def mdetr(*expressions: tuple[int, str, list[int]], first: int = 0) -> dict[str, Any]:
    return {
        "images": [
            {
                "file_name": name_of(image_id),
                "height": 90,
                "width": 160,
                "id": first + n,
                "original_id": image_id,
                "caption": text,
                "dataset_name": "refcoco+",
                "tokens_negative": [[0, 3]],
            }
            for n, (image_id, text, _) in enumerate(expressions)
        ],
        "annotations": [
            {
                "image_id": first + n,
                "id": 500 + n,
                "original_id": 1000 + n,
                "category_id": 1,
                "bbox": box,
                "tokens_positive": [[0, 3]],
            }
            for n, (_, _, box) in enumerate(expressions)
        ],
        "categories": [{"id": 1, "name": "person"}],
    }


def test_files_of_mdetr_have_one_expression_an_image(
    tmp_path: Path, coco: Path, prepare_store: Prepare
) -> None:
    train = mdetr((KITCHEN, "lady", [1, 2, 30, 40]), (KITCHEN, "cup", [5, 5, 5, 5]))
    test = mdetr((BEACH, "man", [1, 1, 9, 9]))
    paths = [
        write_json(tmp_path / "finetune_refcoco+_train.json", train),
        write_json(tmp_path / "finetune_refcoco+_testA.json", test),
    ]
    done = prepare_store("refcoco", {"annotations": paths, "images": coco})
    assert [(r.id, r.split, r.image, r.regions) for r in done.records] == [
        (
            "train-0",
            "train",
            f"train2014/{name_of(KITCHEN)}",
            (Region("lady", (1, 2, 31, 42), "phrase"),),
        ),
        (
            "train-1",
            "train",
            f"train2014/{name_of(KITCHEN)}",
            (Region("cup", (5, 5, 10, 10), "phrase"),),
        ),
        (
            "testA-0",
            "testA",
            f"train2014/{name_of(BEACH)}",
            (Region("man", (1, 1, 10, 10), "phrase"),),
        ),
    ]
    assert done.records[0].meta == {"ann_id": 1000, "category": "person"}
    assert done.records[0].same_as == ("coco:9",)


def test_damage_in_files_of_mdetr_is_counted(
    tmp_path: Path, coco: Path, prepare_store: Prepare
) -> None:
    value = mdetr(*((KITCHEN, text, [1, 2, 30, 40]) for text in ("a", "b", "c")))
    del value["images"][1]["file_name"]
    value["annotations"][2]["image_id"] = 77
    value["annotations"] += [5, {"id": 1}]
    path = write_json(tmp_path / "x_val.json", value)
    done = prepare_store("refcoco", {"annotations": [path], "images": coco})
    assert [r.id for r in done.records] == ["val-0"]
    assert done.lost("region") == {
        "x_val.json: 502": "unknown image",
        "val-1": "no image",
        "val-2": "unknown annotation",
    }
    assert done.dropped("line") == {"not an object": 1, "no id": 1}
    value["images"].append({**value["images"][0], "caption": "another"})
    write_json(path, value)
    with pytest.raises(DataError, match="gives the image id 0 to two different things"):
        prepare_store("refcoco", {"annotations": [path], "images": coco})


def test_a_name_that_tells_no_split_needs_the_option(
    tmp_path: Path, coco: Path, prepare_store: Prepare
) -> None:
    path = write_json(tmp_path / "contest.json", mdetr((BEACH, "man", [1, 1, 9, 9])))
    options = {"annotations": [path], "images": coco}
    with pytest.raises(UsageError, match="does not tell its split") as caught:
        prepare_store("refcoco", options)
    assert "--split train" in str(caught.value.try_)
    done = prepare_store("refcoco", {**options, "split": "val"})
    assert [r.id for r in done.records] == ["val-0"]


# ---------------------------------------------------------------------- JSON of the released code


def line(ref_id: Any, image_id: int, text: str) -> dict[str, Any]:
    return {"image": f"train2014/{name_of(image_id)}", "text": text, "ref_id": ref_id}


def test_lists_of_the_released_code_take_boxes_and_splits_from_refer(
    tmp_path: Path, coco: Path, prepare_store: Prepare
) -> None:
    root = write_refer(tmp_path / "refcoco+")
    train = [line(0, KITCHEN, "lady"), line(0, KITCHEN, "woman")]
    test = [line(4, BEACH, "umbrella"), line(3, STREET, "a man")]
    paths = [
        write_json(tmp_path / "refcoco+_train.json", train),
        write_json(tmp_path / "refcoco+_test.json", test),
    ]
    done = prepare_store("refcoco", {"root": root, "images": coco, "annotations": paths})
    assert [(r.id, r.split, r.regions[0].text) for r in done.records] == [
        ("0-0", "train", "lady"),
        ("0-1", "train", "woman"),
        ("4-0", "testB", "umbrella"),
        ("3-0", "testA", "a man"),
    ]
    boxes = [(10.0, 20.0, 40.5, 60.0)] * 2 + [(7.0, 8.0, 16.0, 18.0), (5.0, 5.0, 25.0, 55.0)]
    assert [r.regions[0].box_xyxy_px for r in done.records] == boxes
    assert done.records[3].meta == {"ref_id": 3, "ann_id": 103, "category": "person"}


def test_what_the_lists_say_wrong_is_counted(
    tmp_path: Path, coco: Path, prepare_store: Prepare
) -> None:
    root = write_refer(tmp_path / "refcoco+")
    refs = [ref(*r) for r in REFS]
    refs[2]["ann_id"] = 999
    write_refer(root, refs)
    members = [
        line(0, KITCHEN, "lady"),
        line(99, KITCHEN, "lady"),
        line(4, KITCHEN, "umbrella"),
        line("4", BEACH, "umbrella"),
        line(2, STREET, "car"),
        {"text": "a", "ref_id": 0},
        7,
    ]
    path = write_json(tmp_path / "refcoco+_train.json", members)
    options = {"root": root, "images": coco, "annotations": [path]}
    done = prepare_store("refcoco", options)
    assert [r.id for r in done.records] == ["0-0"]
    assert done.lost("region") == {
        "refcoco+_train.json[1]": "unknown ref",
        "refcoco+_train.json[2]": "annotation of another picture",
        "refcoco+_train.json[3]": "no id",
        "refcoco+_train.json[4]": "unknown annotation",
        "refcoco+_train.json[5]": "no image",
        "refcoco+_train.json[6]": "not an object",
    }
    write_refer(root, [*refs, refs[0]])
    with pytest.raises(DataError, match="has the ref_id 0 twice"):
        prepare_store("refcoco", options)


def test_lists_without_boxes_need_the_folder_of_refer(
    tmp_path: Path, coco: Path, prepare_store: Prepare
) -> None:
    path = write_json(tmp_path / "refcoco+_train.json", [line(0, KITCHEN, "lady")])
    with pytest.raises(UsageError, match="has no boxes") as caught:
        prepare_store("refcoco", {"images": coco, "annotations": [path]})
    assert "--root FOLDER" in str(caught.value.try_)


# ---------------------------------------------------------------------- VLUE


def test_vlue_has_boxes_and_those_of_a_detector(
    tmp_path: Path, coco: Path, prepare_store: Prepare
) -> None:
    common = {"bbox": [1, 2, 30, 40], "height": 90, "width": 160}
    members = [
        {**line(26, KITCHEN, "lady"), **common, "dets": [[0, 0, 10, 10, 0.9], [5, 5, 200, 9], 3]},
        {**line(26, KITCHEN, "woman"), **common},
        {**line(27, BEACH, "man"), **common, "dets": "none"},
        {**line(28, BEACH, "man"), **common, "width": 320},
    ]
    path = write_json(tmp_path / "refcoco+_vlue_test.json", members)
    done = prepare_store("refcoco", {"images": coco, "annotations": [path]})
    assert [(r.id, r.split, r.proposals_xyxy_px) for r in done.records] == [
        ("26-0", "test", ((0, 0, 10, 10),)),
        ("26-1", "test", ()),
        ("27-0", "test", ()),
    ]
    assert done.records[0].regions == (Region("lady", (1, 2, 31, 42), "phrase"),)
    assert done.records[0].meta == {"ref_id": 26}
    assert done.lost("proposal") == {
        "26-0[1]": "box outside the picture",
        "26-0[2]": "box malformed",
        "27-0": "malformed boxes",
    }
    assert done.dropped("picture") == {"size mismatch": 1}


# ---------------------------------------------------------------------- other files


@pytest.mark.parametrize(
    ("value", "says", "hint"),
    [
        ({"9": [[1, 2, 3, 4]]}, "no images with a caption", "prepare-data proposals"),
        (instances(), "no images with a caption", "leave --annotations out"),
        ([{"image": "a.jpg", "caption": "b"}], "its first member has image, caption", "refcoco+_"),
        ([3], "its first member has no keys", "refcoco+_"),
        ([], "is no list of image, text and ref_id", "refcoco+_"),
    ],
)
def test_a_file_of_something_else_is_told(
    tmp_path: Path, coco: Path, prepare_store: Prepare, value: Any, says: str, hint: str
) -> None:
    path = write_json(tmp_path / "x_train.json", value)
    with pytest.raises(DataError, match=says) as caught:
        prepare_store("refcoco", {"images": coco, "annotations": [path]})
    assert hint in str(caught.value.try_)
    assert str(path) in caught.value.what


def test_options_that_say_nothing_here_are_refused(
    tmp_path: Path, coco: Path, prepare_store: Prepare
) -> None:
    root = write_refer(tmp_path / "refcoco")
    path = write_json(tmp_path / "x_train.json", mdetr((BEACH, "man", [1, 1, 9, 9])))
    options = {"root": root, "images": coco}
    with pytest.raises(UsageError, match="--text raw"):
        prepare_store("refcoco", {**options, "annotations": [path], "text": "raw"})
    with pytest.raises(UsageError, match="--split is for files of --annotations"):
        prepare_store("refcoco", {**options, "split": "train"})
    with pytest.raises(UsageError, match="is no JSON") as caught:
        prepare_store("refcoco", {**options, "annotations": [root / "refs(unc).p"]})
    assert caught.value.try_ == f"--root {root}, without --annotations"
    with pytest.raises(DataError, match="cannot read"):
        prepare_store("refcoco", {**options, "annotations": [tmp_path / "none.json"]})


# ---------------------------------------------------------------------- samples


def counts() -> dict[str, Any]:
    if not SHARED.is_dir():
        return {}
    files: dict[str, Any] = json.loads((SHARED / "expected_counts.json").read_text())["files"]
    wanted = {}
    for name, expected in files.items():
        if name.startswith("refcoco") and "expressions" in expected:
            wanted[name] = expected
    return wanted


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared")
@pytest.mark.parametrize("name", counts())
def test_samples_have_the_expected_counts(prepare_store: Prepare, name: str) -> None:
    expected, root = counts()[name], SHARED / name.split("/")[0]
    options: dict[str, Any] = {"root": root, "images": SHARED / "coco_2014_images"}
    if name.endswith(".json"):
        options["annotations"] = [SHARED / name]
    done = prepare_store("refcoco", options)
    assert len(done.records) == expected["expressions"]
    assert len({r.image for r in done.records}) == expected["images"]
    assert done.count("region") | {"repaired": {}} == {
        "read": expected["expressions"],
        "kept": expected["expressions"],
        "dropped": {},
        "repaired": {},
    }
    if "refs" in expected:
        assert done.manifest.splits == expected["expressions_by_split"]
        refs = {(r.split, r.meta["ref_id"]) for r in done.records}
        assert Counter(split for split, _ in refs) == expected["refs_by_split"]
        assert len(refs) == expected["refs"] == expected["refs_with_valid_box"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared")
def test_every_layout_of_a_sample_says_the_same(prepare_store: Prepare) -> None:
    folder, images = SHARED / "refcoco+", SHARED / "coco_2014_images"
    found = []
    for kind in ("refs", "mdetr", "xvlm"):
        paths = sorted(folder.glob(f"{kind}/*.json"))
        options: dict[str, Any] = {
            "root": folder,
            "images": images,
            "annotations": [path for path in paths if "vlue" not in path.name],
        }
        records = prepare_store("refcoco", options).records
        found.append(Counter((r.split, r.image, r.regions) for r in records))
    assert found[0] == found[1] == found[2]
