from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sources.conftest import Prepare, Prepared
from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources import openimages_tables

A, B, C = "000a1249af2bc5f0", "ffff1249af2bc5f0", "0123456789abcdef"
BOXES = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax"
MARKED = f"{BOXES},IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
V6 = f"{MARKED},XClick1X,XClick2X"
RELATIONS = (
    "ImageID,LabelName1,LabelName2,XMin1,XMax1,YMin1,YMax1,XMin2,XMax2,YMin2,YMax2,RelationLabel"
)
LABELS = "ImageID,Source,LabelName,Confidence"
MAN, BIKE, CHAIR, WOODEN, SIT = "/m/04yx4", "/m/0199g", "/m/01mzpv", "/m/083vt", "/m/015c4z"
CLASSES = [f"{MAN},Man", f"{BIKE},Bicycle", f'{CHAIR},"Chair, wide"']
ATTRIBUTES = ["id,name", f"{WOODEN},Wooden", f"{SIT},Sit", "/m/04lbp,(made of)Leather"]


def box(id: str, label: str = MAN, xxyy: str = "0.25,0.75,0,1", marks: str = "0,0,0,0,0") -> str:
    return f"{id},xclick,{label},1,{xxyy},{marks}"


def relation(
    id: str, first: str, name: str, second: str, one: str = "0,0.5,0,1", two: str = "0.25,1,0,0.5"
) -> str:
    return f"{id},{first},{second},{one},{two},{name}"


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def draw(root: Path, *names: str) -> None:
    for name in names:
        (root / f"{name}.jpg").parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (200, 100)).save(root / f"{name}.jpg")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Pictures A, B and C, names of classes and of attributes."""
    root = tmp_path / "oi"
    draw(root, *(f"train/{id}" for id in (A, B, C)))
    write(root / "class-descriptions-boxable.csv", *CLASSES)
    write(root / "oidv6-attributes-description.csv", *ATTRIBUTES)
    return root


def texts(done: Prepared, at: int = 0) -> list[tuple[str, str]]:
    return [(region.kind, region.text) for region in done.records[at].regions]


def test_rows_of_a_picture_become_one_record_with_boxes_in_pixels(
    root: Path, prepare_store: Prepare
) -> None:
    boxes = [box(B), box(A, BIKE, "0.1,0.35,0.5,0.9", "1,0,1,0,0"), box(A, CHAIR)]
    write(root / "train-annotations-bbox.csv", MARKED, *boxes)
    related = [
        relation(A, MAN, "inside_of", BIKE),
        relation(C, CHAIR, "is", WOODEN, "0.5,1,0,1", "0.5,1,0,1"),
        relation(C, MAN, "is", SIT, "0.5,1,0,1", "0.5,1,0,1"),
        relation(A, BIKE, "under", MAN, "0,0.1,0,0.5", "0.4,0.5,0.25,1"),
    ]
    write(root / "oidv6-train-annotations-vrd.csv", RELATIONS, *related)
    done = prepare_store("openimages", {"root": root})
    assert [record.id for record in done.records] == [B, A, C]
    second = done.records[1]
    assert (second.image, second.split, second.source) == (f"train/{A}.jpg", "train", "openimages")
    assert second.same_as == (f"openimages:{A}",)
    assert [(r.kind, r.text, r.box_xyxy_px) for r in second.regions] == [
        ("object", "Bicycle", (20, 50, 70, 90)),
        ("object", "Chair, wide", (50, 0, 150, 100)),
        ("relation", "Man inside of Bicycle", (0, 0, 200, 100)),
        ("relation", "Bicycle under Man", (0, 0, 100, 100)),
    ]
    assert [(r.kind, r.text, r.box_xyxy_px) for r in done.records[2].regions] == [
        ("attribute", "Wooden Chair, wide", (100, 0, 200, 100)),
        ("attribute", "sitting Man", (100, 0, 200, 100)),
    ]
    repaired = {line["seen"]: line["id"] for line in done.ledger if line["what"] == "repaired"}
    assert repaired == {
        "Sit": f"attribute {SIT}: sitting",
        "(made of)Leather": "attribute /m/04lbp: leather",
    }


@pytest.mark.parametrize(
    ("options", "lost"),
    [
        ({}, {}),
        ({"groups": False}, {"b.csv:3": "group"}),
        ({"depictions": False}, {"b.csv:4": "depiction"}),
        ({"groups": False, "depictions": False}, {"b.csv:3": "group", "b.csv:4": "depiction"}),
    ],
)
def test_groups_and_depictions_can_be_left_out(
    root: Path, prepare_store: Prepare, options: dict[str, Any], lost: dict[str, str]
) -> None:
    marks = ["0,0,0,0,0", "0,0,1,0,0", "0,0,0,1,0", "-1,-1,-1,-1,-1"]
    path = write(root / "b.csv", MARKED, *(box(A, marks=mark) for mark in marks))
    done = prepare_store("openimages", {"root": root, "annotations": [path], **options})
    assert done.lost("region") == lost
    assert done.count("region")["read"] == 4


def test_rows_of_one_picture_may_stand_anywhere(root: Path, prepare_store: Prepare) -> None:
    boxes = [box(A), box(B), box(A, BIKE), "", box(C), box(A, CHAIR), box(A), box(B, BIKE)]
    for end in ("\n", "\r\n"):
        write(root / "train-annotations-bbox.csv", MARKED, *boxes, end=end)
        done = prepare_store("openimages", {"root": root, "parts": "boxes"})
        assert [record.id for record in done.records] == [A, B, C]
        names = [[text for _, text in texts(done, at)] for at in range(3)]
        assert names == [["Man", "Bicycle", "Chair, wide", "Man"], ["Man", "Bicycle"], ["Man"]]


def test_rows_of_one_picture_keep_their_order(root: Path, prepare_store: Prepare) -> None:
    rights = [0.5 + number / 1000 for number in range(100)]
    boxes = [box(id, xxyy=f"0.25,{right},0,1") for right in rights for id in (B, A)]
    write(root / "train-annotations-bbox.csv", MARKED, *boxes)
    done = prepare_store("openimages", {"root": root, "parts": "boxes"})
    for record in done.records:
        found = [region.box_xyxy_px[2] for region in record.regions]
        assert found == [pytest.approx(200 * right) for right in rights]


def test_a_row_that_is_damaged_costs_itself_only(root: Path, prepare_store: Prepare) -> None:
    boxes = [
        box(A, xxyy="0.5,0.4,0,1"),
        box(A, xxyy="0.5,1.1,0,1"),
        box(A, xxyy="0.5,0.55,0,0.1"),
        box(A, xxyy="0.5,x,0,1"),
        box(A, xxyy="0.5,nan,0,1"),
        box(A, xxyy="0.5,1_0,0,1"),
        box(A, "/m/unknown"),
        f"{A},xclick",
        box(A) + ",more",
        box(A, '"' + MAN),
        box("A" + A[1:]),
        box("../../secret"),
        box(""),
        box(f'"{A}"'),
        box(B),
        box(A, xxyy="0.1,1.0000001,0,1"),
    ]
    path = write(root / "train-annotations-bbox.csv", MARKED, *boxes)
    with open(path, "ab") as file:
        file.write(f"{A},\xe9,{MAN}\n".encode("latin-1"))
    done = prepare_store("openimages", {"root": root, "parts": "boxes"})
    assert {int(key.split(":")[1]): why for key, why in done.lost("region").items()} == {
        2: "box has no area",
        3: "box outside the picture",
        4: "box too small",
        5: "box malformed",
        6: "box not finite",
        7: "box malformed",
        8: "unknown category",
        9: "wrong number of columns",
        10: "wrong number of columns",
        11: "malformed row",
        12: "unknown image",
        13: "unknown image",
        14: "no image",
        18: "not UTF-8",
    }
    assert [(r.id, len(r.regions)) for r in done.records] == [(A, 2), (B, 1)]
    assert done.count("region")["read"] == len(boxes) + 1


def test_relations_that_say_nothing_are_counted_each(root: Path, prepare_store: Prepare) -> None:
    related = [
        relation(A, MAN, "on", "/m/unknown"),
        relation(A, "/m/unknown", "on", MAN),
        relation(A, MAN, "is", "/m/unknown"),
        relation(A, MAN, "", BIKE),
        relation(A, MAN, "on", BIKE, "0.2,0.2,0,1"),
        relation(A, MAN, "on", BIKE, two="0.2,1.5,0,1"),
        relation(A, MAN, "on", BIKE, two="0.2,x,0,1"),
        relation(A, MAN, "on", BIKE),
        relation(A, MAN, "on", BIKE),
        relation(A, MAN, "is", BIKE),
    ]
    write(root / "train-vrd.csv", RELATIONS, *related)
    done = prepare_store("openimages", {"root": root, "parts": "relations"})
    assert {int(key.split(":")[1]): why for key, why in done.lost("region").items()} == {
        2: "unknown category",
        3: "unknown category",
        4: "unknown category",
        5: "empty text",
        6: "box has no area",
        7: "box outside the picture",
        8: "box malformed",
        10: "text overlap",
    }
    assert texts(done) == [("relation", "Man on Bicycle"), ("attribute", "Bicycle Man")]


def test_every_split_is_found_with_its_newest_table(root: Path, prepare_store: Prepare) -> None:
    draw(root, f"validation/{B}", f"test/{C}")
    (root / "train" / f"{B}.jpg").unlink()
    write(root / "annotations" / "train-annotations-bbox.csv", MARKED, box(A, BIKE))
    rows = f"{box(A)},0.5,0.5"
    write(root / "annotations" / "oidv6-train-annotations-bbox.csv", V6, rows)
    write(root / "annotations" / "challenge-2019-train-detection-bbox.csv", BOXES)
    write(root / "validation-annotations-bbox.csv", MARKED, box(B))
    write(root / "test-annotations-bbox.csv", MARKED, box(C))
    write(root / "challenge-2019-train-vrd.csv", RELATIONS, relation(A, MAN, "at", BIKE))
    write(root / "challenge-2018-train-vrd.csv", RELATIONS, relation(A, BIKE, "on", MAN))
    done = prepare_store("openimages", {"root": root})
    assert sorted((r.split, r.image, [x.text for x in r.regions]) for r in done.records) == [
        ("test", f"test/{C}.jpg", ["Man"]),
        ("train", f"train/{A}.jpg", ["Man", "Man at Bicycle"]),
        ("val", f"validation/{B}.jpg", ["Man"]),
    ]
    done = prepare_store("openimages", {"root": root, "split": "pretrain"})
    assert {record.split for record in done.records} == {"pretrain"}


@pytest.mark.parametrize(
    ("name", "split", "folder"),
    [
        ("own-val-boxes.csv", "val", "validation"),
        ("validation.csv", "val", "validation"),
        ("test/boxes.csv", "test", "test"),
        ("boxes.csv", "train", "train"),
        ("trained-boxes.csv", "train", "train"),
    ],
)
def test_the_split_is_told_by_the_name_of_the_file(
    tmp_path: Path, prepare_store: Prepare, name: str, split: str, folder: str
) -> None:
    root = tmp_path / "oi"
    draw(root, f"{folder}/{A}")
    classes = write(root / "classes.csv", *CLASSES)
    boxes = write(root / name, MARKED, box(A))
    options = {"annotations": [boxes], "images": root, "classes": [classes]}
    done = prepare_store("openimages", options)
    assert [(r.split, r.image) for r in done.records] == [(split, f"{folder}/{A}.jpg")]


@pytest.mark.parametrize(
    "place", ["", "images/", "images/train/", "train/data/", "train_{}/", "train/train_{}/"]
)
def test_pictures_are_found_wherever_they_usually_are(
    tmp_path: Path, prepare_store: Prepare, place: str
) -> None:
    root = tmp_path / "oi"
    (root / "train").mkdir(parents=True)
    draw(root, *(place.format(id[0]) + id for id in (A, B)))
    write(root / "class-descriptions-boxable.csv", *CLASSES)
    write(root / "train-annotations-bbox.csv", MARKED, box(A), box(B))
    done = prepare_store("openimages", {"root": root, "parts": "boxes"})
    images = [place.format(id[0]) + f"{id}.jpg" for id in (A, B)]
    assert [record.image for record in done.records] == images


@pytest.mark.parametrize(
    "lines",
    [
        CLASSES,
        ["id,name", *CLASSES],
        ["LabelName,DisplayName", *CLASSES],
        ["\ufeff" + CLASSES[0], *CLASSES[1:]],
    ],
)
def test_names_of_classes_may_have_a_header(
    root: Path, prepare_store: Prepare, lines: Sequence[str]
) -> None:
    write(root / "class-descriptions-boxable.csv", *lines)
    write(root / "train-annotations-bbox.csv", MARKED, box(A), box(A, BIKE))
    done = prepare_store("openimages", {"root": root, "parts": "boxes"})
    assert [text for _, text in texts(done)] == ["Man", "Bicycle"]


def test_a_damaged_line_of_the_names_is_listed(root: Path, prepare_store: Prepare) -> None:
    lines = [CLASSES[0], "", f"{BIKE},Bicycle,Bike", f"{MAN},Person"]
    write(root / "class-descriptions-boxable.csv", *lines)
    write(root / "train-annotations-bbox.csv", MARKED, box(A), box(A, BIKE))
    done = prepare_store("openimages", {"root": root, "parts": "boxes"})
    assert done.lost("line") == {"class-descriptions-boxable.csv:3": "wrong number of columns"}
    assert done.dropped("region") == {"unknown category": 1}
    assert texts(done) == [("object", "Man")]


def test_what_people_saw_is_not_there_is_read_if_asked(root: Path, prepare_store: Prepare) -> None:
    write(root / "train-annotations-bbox.csv", MARKED, box(A), box(B))
    labels = [
        f"{C},verification,{CHAIR},0",  # of no picture that is read
        f"{B},verification,{CHAIR},0",
        f"{A},verification,{CHAIR},1",
        f"{A},verification,{BIKE},0",
        f"{A},crowdsource-verification,/m/unknown,0.0",
        f"{A},verification",
        f"none,verification,{BIKE},0",
        f"{B},verification,{BIKE},0",
    ]
    path = write(root / "train-annotations-human-imagelabels.csv", LABELS, *labels)
    boxable = root / "train-annotations-human-imagelabels-boxable.csv"
    write(boxable, LABELS, f"{A},verification,{CHAIR},0")
    options = {"root": root, "parts": "boxes"}
    done = prepare_store("openimages", options)
    assert [record.absent for record in done.records] == [(), ()]
    done = prepare_store("openimages", {**options, "absent": True})
    assert [record.absent for record in done.records] == [("Chair, wide",), ()]
    done = prepare_store("openimages", {**options, "labels": [path]})
    assert [record.absent for record in done.records] == [
        ("Bicycle",),
        ("Chair, wide", "Bicycle"),
    ]
    assert done.lost("absent") == {
        f"{path.name}:6": "unknown category",
        f"{path.name}:7": "wrong number of columns",
    }


def test_labels_of_unread_pictures_are_passed_over_in_parts(
    root: Path, prepare_store: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root / "train-annotations-bbox.csv", MARKED, box(A), box(B))
    rows = [f"{id},verification,{BIKE},0" for id in (C, B, C, A, C, B)]
    write(root / "train-annotations-human-imagelabels.csv", LABELS, *rows)
    monkeypatch.setattr(openimages_tables, "_FILTERED_AT", 2)
    done = prepare_store("openimages", {"root": root, "parts": "boxes", "absent": True})
    assert [record.absent for record in done.records] == [("Bicycle",), ("Bicycle", "Bicycle")]


def test_addresses_tell_which_photograph_at_flickr_a_picture_is(
    root: Path, prepare_store: Prepare
) -> None:
    write(root / "train-annotations-bbox.csv", MARKED, box(A), box(B))
    rows = [
        f'{B},train,https://c2.staticflickr.com/6/5186/5591_o.jpg,"a, ""b"""',
        f"{A},train,https://farm1.staticflickr.com/5615/15335861457_ec2be7a54c_o.jpg,title",
        f"{A},train",
        f"{C},train,https://c2.staticflickr.com/6/5186/5592_b_o.jpg,title",
    ]
    photos = root / "train-images-boxable-with-rotation.csv"
    write(photos, "ImageID,Subset,OriginalURL,Title", *rows)
    exclude = write(root / "list.txt", "flickr:15335861457")
    options = {"root": root, "parts": "boxes"}
    done = prepare_store("openimages", options)
    assert f"openimages:{A}" in done.records[0].same_as
    assert "flickr:15335861457" in done.records[0].same_as
    assert done.lost("line") == {f"{photos.name}:4": "wrong number of columns"}
    done = prepare_store("openimages", {**options, "exclude": [str(exclude)]})
    assert done.lost("picture") == {A: "excluded"}


def test_tables_of_the_same_name_are_told_apart(root: Path, prepare_store: Prepare) -> None:
    draw(root, f"validation/data/{B}", f"train/data/{A}")
    for split, id in (("train", A), ("validation", B)):
        rows = [box(id), box(id, "/m/unknown")]
        write(root / split / "labels" / "detections.csv", MARKED, *rows)
    paths = [root / split / "labels" / "detections.csv" for split in ("train", "validation")]
    for path in (root / "train").glob("*.jpg"):
        path.unlink()
    done = prepare_store("openimages", {"root": root, "annotations": paths})
    images = [(record.split, record.image) for record in done.records]
    assert images == [("train", f"train/data/{A}.jpg"), ("val", f"validation/data/{B}.jpg")]
    assert done.lost("region") == {f"{path}:3": "unknown category" for path in paths}


def test_columns_are_told_by_name_in_any_order(root: Path, prepare_store: Prepare) -> None:
    header = "YMax,LabelName,XMax,XMin,ImageID,YMin"
    write(root / "train-annotations-bbox.csv", header, f"1,{MAN},0.5,0.25,{A},0", f"1,{MAN}")
    done = prepare_store("openimages", {"root": root, "parts": "boxes"})
    assert [r.box_xyxy_px for r in done.records[0].regions] == [(50, 0, 100, 100)]
    assert done.lost("region") == {"train-annotations-bbox.csv:3": "no image"}


def test_what_is_not_there_is_named(root: Path, tmp_path: Path, prepare_store: Prepare) -> None:
    def refused(what: str, try_: str = "", error: type = DataError, **options: object) -> None:
        with pytest.raises(error, match=what) as caught:
            prepare_store("openimages", {"root": root, **options})
        assert try_ in (caught.value.try_ or "")

    with pytest.raises(UsageError, match="where Open Images is was not said"):
        prepare_store("openimages", {})
    refused("there is no folder", "--root", root=tmp_path / "none")
    refused("no 'box'; there are: boxes, relations", "--parts boxes", UsageError, parts="box")
    refused(r"no \*-annotations-bbox.csv or .* in", "--annotations FILE, or --parts relations")
    boxes = write(root / "train-annotations-bbox.csv", BOXES, box(A, marks="")[:-1])
    refused(r"no \*-vrd.csv in", "--annotations FILE, or --parts boxes")
    part = {"parts": "boxes"}
    refused(r"no \*-human-imagelabels", "--labels FILE", absent=True, **part)
    refused("no column IsGroupOf", "--groups", groups=False, **part)
    refused("no column IsDepiction", "--depictions", depictions=False, **part)
    refused("is no table of labels, but of boxes", "--annotations", labels=[boxes], **part)
    labels = write(root / "train-annotations-human-imagelabels.csv", LABELS)
    refused("no table of boxes", "--annotations", UsageError, annotations=[labels])
    refused("no pictures of Open Images", "--images FOLDER", images=tmp_path, **part)
    write(root / "train-annotations-bbox.csv", BOXES.replace("YMax", "Y2"))
    with pytest.raises(DataError, match="has no column YMax") as caught:
        prepare_store("openimages", {"root": root, **part})
    assert "XMin,XMax,YMin,Y2" in "".join(caught.value.details).replace(", ", ",")
    assert "YMax" in str(caught.value.try_)
    write(root / "train-annotations-bbox.csv", box(A))
    refused("has no column", "--annotations FILE with a header", **part)
    (root / "train-annotations-bbox.csv").write_bytes(b"")
    refused("is an empty file", **part)
    (root / "train-annotations-bbox.csv").write_bytes(BOXES.encode("utf-16"))
    refused("is UTF-16, not UTF-8", "iconv", **part)
    write(root / "train-annotations-bbox.csv", BOXES)
    refused("nothing to keep", **part)
    cut = RELATIONS.rsplit(",", 1)[0]
    write(root / "train-vrd.csv", cut)
    refused("has no column RelationshipLabel", parts="relations")
    write(root / "class-descriptions-boxable.csv", "Man", "Bicycle")
    refused("has no labels such as /m/01g317", "--classes", **part)
    (root / "class-descriptions-boxable.csv").unlink()
    refused("no class-descriptions-boxable.csv in", "--classes FILE", **part)


def test_several_processes_make_the_same_records(root: Path, prepare_store: Prepare) -> None:
    boxes = [box(id, label) for label in (MAN, BIKE) for id in (A, B, C)]
    write(root / "train-annotations-bbox.csv", MARKED, *boxes)
    options = {"root": root, "parts": "boxes", "shard_records": 1}
    one = prepare_store("openimages", options)
    two = prepare_store("openimages", {**options, "workers": 2})
    assert len(one.records) == 3
    assert one.records == two.records


# ------------------------------------------------------------------ the agreed sample


@pytest.fixture
def agreed(shared: Path) -> dict[str, Any]:
    files = json.loads((shared / "data" / "expected_counts.json").read_text())["files"]
    return {name.split("/")[1]: v for name, v in files.items() if "openimages" in name}


@pytest.mark.parametrize("file", ["train-annotations-bbox", "oidv6-train-annotations-bbox"])
def test_counts_of_the_boxes_of_the_sample_are_the_expected_ones(
    shared: Path, agreed: dict[str, Any], prepare_store: Prepare, file: str
) -> None:
    root = shared / "data" / "openimages"
    options = {"root": root, "annotations": [root / f"{file}.csv"]}
    expected = agreed[f"{file}.csv"]
    objects = expected["objects"]
    done = prepare_store("openimages", options)
    assert done.count("picture")["read"] == expected["images"]
    assert done.count("region")["read"] == objects["read"]
    assert done.count("region")["kept"] == objects["kept"]
    assert done.dropped("region") == {"box too small": objects["box_below_1_percent"]}
    assert objects["invalid_box"] == objects["empty_text"] == 0
    assert len(done.records) == objects["images_with_a_kept_box"]
    done = prepare_store("openimages", {**options, "groups": False})
    assert done.dropped("region")["group"] == objects["group_boxes_among_read"]
    done = prepare_store("openimages", {**options, "groups": False, "depictions": False})
    assert done.count("region")["kept"] == objects["kept_without_group_and_depiction_boxes"]


@pytest.mark.parametrize("file", ["oidv6-train-annotations-vrd", "challenge-2019-train-vrd"])
def test_counts_of_the_relations_of_the_sample_are_the_expected_ones(
    shared: Path, agreed: dict[str, Any], prepare_store: Prepare, file: str
) -> None:
    root = shared / "data" / "openimages"
    expected = agreed[f"{file}.csv"]
    done = prepare_store("openimages", {"root": root, "annotations": [root / f"{file}.csv"]})
    assert done.count("picture")["read"] == expected["images"]
    regions = expected["regions"]
    assert done.count("region")["read"] == regions["read"] == expected["relations"]
    assert done.count("region")["kept"] == regions["kept"]
    assert sum(done.dropped("region").values()) == regions["read"] - regions["kept"]
    kinds = [region.kind for record in done.records for region in record.regions]
    assert kinds.count("attribute") == expected["attribute_rows"]


def test_all_names_of_classes_of_the_sample_are_read(
    shared: Path, agreed: dict[str, Any], root: Path, prepare_store: Prepare
) -> None:
    path = shared / "data" / "openimages" / "class-descriptions-boxable.csv"
    labels = [line.split(",")[0] for line in path.read_text().splitlines()]
    boxes = write(root / "b.csv", MARKED, *(box(A, label) for label in labels))
    done = prepare_store("openimages", {"root": root, "classes": [path], "annotations": [boxes]})
    assert done.count("region")["kept"] == agreed[path.name]["classes"]
