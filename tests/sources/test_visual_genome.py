from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sources.conftest import Prepare, Prepared
from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.registry import checked_options
from xvlm_core.sources.visual_genome import SOURCE

HOST = "https://cs.stanford.edu/people/rak248"
FILES = ("image_data", "region_descriptions", "objects", "attributes", "relationships")


def image(id: int, folder: str = "VG_100K", **more: Any) -> dict[str, Any]:
    url = f"{HOST}/{folder}/{id}.jpg"
    return {"width": 160, "url": url, "height": 90, "image_id": id, **more}


def region(id: int, image_id: int, phrase: Any, box: Any = (0, 0, 80, 60)) -> dict[str, Any]:
    x, y, w, h = box
    place = {"x": x, "y": y, "width": w, "height": h}
    return {"region_id": id, **place, "image_id": image_id, "phrase": phrase}


def thing(id: int, names: Any, box: Any = (0, 0, 80, 60), **more: Any) -> dict[str, Any]:
    x, y, w, h = box
    synsets = {"synsets": ["thing.n.01"]}
    return {**synsets, "h": h, "object_id": id, "names": names, "w": w, "y": y, "x": x, **more}


def relation(id: int, subject: Any, predicate: Any, object: Any) -> dict[str, Any]:
    ends = {"subject": subject, "object": object}
    return {"relationship_id": id, "predicate": predicate, "synsets": ["on.r.01"], **ends}


def write(root: Path, name: str, content: Any) -> None:
    (root / f"{name}.json").write_text(json.dumps(content))


def draw(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (160, 90)).save(root / name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Pictures 1 and 2, in two folders."""
    root = tmp_path / "vg"
    draw(root, "VG_100K/1.jpg", "VG_100K_2/2.jpg")
    pictures = [
        image(1, coco_id=391895, flickr_id=None),
        image(2, "VG_100K_2", coco_id=None, flickr_id=6113512699),
    ]
    write(root, "image_data", pictures)
    write(
        root,
        "region_descriptions",
        [
            {"id": 1, "regions": [region(11, 1, "a red bus\n"), region(12, 1, "A red bus.")]},
            {"id": 2, "regions": [region(21, 2, "sky", (0, 0, 160, 40))]},
        ],
    )
    write(
        root,
        "objects",
        [
            {"image_id": 1, "image_url": "x", "objects": [thing(31, ["bus", "coach"])]},
            {"image_id": 2, "image_url": "x", "objects": [thing(41, ["sky"], (0, 0, 160, 40))]},
        ],
    )
    red = thing(31, ["bus"], attributes=["red ", "big"])
    plain = thing(41, ["sky"], (0, 0, 160, 40))
    write(
        root,
        "attributes",
        [{"image_id": 1, "attributes": [red]}, {"image_id": 2, "attributes": [plain]}],
    )
    man = thing(32, ["man"], (10, 20, 20, 40))
    sky = {**thing(41, None, (0, 0, 160, 40)), "name": "sky"}
    bird = {**thing(42, None, (20, 50, 10, 10)), "name": "bird"}
    write(
        root,
        "relationships",
        [
            {"image_id": 1, "relationships": [relation(51, man, "driving", thing(31, ["bus"]))]},
            {"image_id": 2, "relationships": [relation(52, bird, "BELOW", sky)]},
        ],
    )
    return root


def texts(done: Prepared, at: int = 0) -> list[tuple[str, str]]:
    return [(region.kind, region.text) for region in done.records[at].regions]


def ids(done: Prepared) -> list[str]:
    return [record.id for record in done.records]


def test_all_that_is_said_of_a_picture_becomes_one_record(
    root: Path, prepare_store: Prepare
) -> None:
    done = prepare_store("visual-genome", {"root": root})
    first, second = done.records
    assert (first.id, first.image, first.source) == ("1", "VG_100K/1.jpg", "visual-genome")
    assert (first.split, first.same_as) == ("train", ("coco:391895", "vg:1"))
    assert (second.image, second.same_as) == ("VG_100K_2/2.jpg", ("flickr:6113512699", "vg:2"))
    assert [(r.kind, r.text, r.box_xyxy_px) for r in first.regions] == [
        ("region", "a red bus", (0, 0, 80, 60)),
        ("object", "bus", (0, 0, 80, 60)),
        ("attribute", "red bus", (0, 0, 80, 60)),
        ("attribute", "big bus", (0, 0, 80, 60)),
        ("relation", "man driving bus", (0, 0, 80, 60)),
    ]
    assert [(r.kind, r.text, r.box_xyxy_px) for r in second.regions] == [
        ("region", "sky", (0, 0, 160, 40)),
        ("object", "sky", (0, 0, 160, 40)),
        ("relation", "bird BELOW sky", (0, 0, 160, 60)),
    ]
    assert done.lost("region") == {"region 12": "text overlap"}
    assert done.count("region")["read"] == 9


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({"parts": "regions"}, ["region"]),
        ({"parts": "objects"}, ["object", "attribute", "attribute"]),
        ({"parts": "objects", "attributes": False}, ["object"]),
        ({"parts": "attributes"}, ["attribute", "attribute"]),
        ({"parts": "relationships, regions"}, ["region", "relation"]),
        ({"attributes": False}, ["region", "object", "relation"]),
    ],
)
def test_only_the_parts_that_are_asked_for_are_read(
    root: Path, prepare_store: Prepare, options: dict[str, Any], kinds: list[str]
) -> None:
    parts = str(options.get("parts", "regions,objects,relationships"))
    unused = {"region_descriptions": "regions", "objects": "objects", "attributes": "attributes"}
    for name, part in {**unused, "relationships": "relationships"}.items():
        if part not in parts and (part != "attributes" or not options.get("attributes", True)):
            (root / f"{name}.json").unlink()
    done = prepare_store("visual-genome", {"root": root, **options})
    assert [kind for kind, _ in texts(done)] == kinds


@pytest.mark.parametrize(
    ("names", "text", "reason"),
    [
        (["bus", "coach"], "bus", None),
        ("bus", "bus", None),
        (["  night\n\tbus "], "night bus", None),
        (["", "coach"], "coach", None),
        ([""], None, "empty text"),
        ([], None, "empty text"),
        (None, None, "text malformed"),
        ([3], None, "text malformed"),
    ],
)
def test_the_first_name_that_says_anything_is_the_text(
    root: Path, prepare_store: Prepare, names: object, text: str | None, reason: str | None
) -> None:
    things = [thing(31, names), thing(32, ["road"])]
    write(root, "objects", [{"image_id": 1, "objects": things}])
    done = prepare_store("visual-genome", {"root": root, "parts": "objects", "attributes": False})
    assert texts(done) == [*([("object", text)] if text else []), ("object", "road")]
    assert done.lost("region") == ({"object 31": reason} if reason else {})


def test_a_text_of_parts_needs_all_of_them(root: Path, prepare_store: Prepare) -> None:
    found = [
        thing(1, ["bus"], attributes=["red", "", None, "..."]),
        thing(2, [" "], attributes=["blue"]),
        thing(3, ["cat"], attributes=[]),
    ]
    write(root, "attributes", [{"image_id": 1, "attributes": found}])
    bus, none = thing(31, ["bus"]), thing(32, [""])
    related = [
        relation(1, bus, "", thing(33, ["road"])),
        relation(2, none, "on", bus),
        relation(3, bus, "on", {"x": 1}),
        relation(4, bus, None, bus),
        relation(5, bus, "near", thing(34, ["tree"])),
        relation(6, "bus", "near", thing(34, ["tree"])),
    ]
    write(root, "relationships", [{"image_id": 1, "relationships": related}])
    done = prepare_store("visual-genome", {"root": root, "parts": "attributes,relationships"})
    assert texts(done) == [("attribute", "red bus"), ("relation", "bus near tree")]
    assert done.lost("region") == {
        "attribute 1.1": "empty text",
        "attribute 1.2": "text malformed",
        "attribute 1.3": "empty text",
        "attribute 2.0": "empty text",
        "relation 1": "empty text",
        "relation 2": "empty text",
        "relation 3": "text malformed",
        "relation 4": "text malformed",
        "relation 6": "text malformed",
    }


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((60, 40, 0, 10), "box has no area"),
        ((60, 40, float("nan"), 10), "box not finite"),
        ((60, 40, "5", 10), "box malformed"),
        ((60, 40, 110, 10), "box outside the picture"),
        ((-1, 40, 10, 10), "box outside the picture"),
    ],
)
def test_a_relation_is_dropped_if_one_of_its_boxes_is_none(
    root: Path, prepare_store: Prepare, box: Any, reason: str
) -> None:
    good = thing(31, ["bus"], (5, 5, 100, 80))
    related = [
        relation(1, thing(32, ["tree"], box), "by", good),
        relation(2, good, "near", thing(33, ["tree"], box)),
        relation(3, good, "behind", thing(34, ["hill"], (50, 0, 80, 20))),
    ]
    write(root, "relationships", [{"image_id": 1, "relationships": related}])
    done = prepare_store("visual-genome", {"root": root, "parts": "relationships"})
    assert [r.box_xyxy_px for r in done.records[0].regions] == [(5, 0, 130, 85)]
    assert done.lost("region") == {"relation 1": reason, "relation 2": reason}


def test_boxes_and_texts_that_cannot_be_are_counted_each(
    root: Path, prepare_store: Prepare
) -> None:
    regions = [
        region(1, 1, "left", (-1, 0, 80, 60)),
        region(2, 1, "thin", (5, 5, 0, 60)),
        region(3, 1, "far", (500, 5, 10, 60)),
        region(4, 1, "small", (5, 5, 10, 10)),
        region(5, 1, " ,.\n"),
        region(6, 1, None),
        region(7, 2, "of another picture"),
        {"region_id": 8, "phrase": "no box"},
        {**region(0, 1, "no id"), "region_id": None},
        "not an object",
        region(9, 1, "a good one", (0, 0, 16, 9)),
    ]
    write(root, "region_descriptions", [{"id": 1, "regions": regions}])
    done = prepare_store("visual-genome", {"root": root, "parts": "regions"})
    assert done.lost("region") == {
        "region 1": "box outside the picture",
        "region 2": "box has no area",
        "region 3": "box outside the picture",
        "region 4": "box too small",
        "region 5": "empty text",
        "region 6": "text malformed",
        "region 7": "two image ids",
        "region 8": "box malformed",
        "regions[9] of picture 1": "not an object",
    }
    assert texts(done) == [("region", "no id"), ("region", "a good one")]
    assert done.lost("picture") == {"2": "no text left"}


def test_what_is_of_no_known_picture_is_listed(root: Path, prepare_store: Prepare) -> None:
    write(
        root,
        "region_descriptions",
        [
            {"id": 7, "regions": [region(71, 7, "one"), region(72, 7, "two")]},
            {"id": 1, "regions": [region(11, 1, "a bus")]},
            {"id": "2", "regions": [region(21, 2, "id is a text")]},
            {"id": 1, "regions": [region(13, 1, "again")]},
            {"regions": [region(14, 1, "id is missing")]},
            {"id": 2, "regions": None},
            "nothing",
            {"id": 2, "regions": [region(22, 2, "sky")]},
            {"id": 8, "regions": [region(81, 8, "last")]},
        ],
    )
    done = prepare_store("visual-genome", {"root": root, "parts": "regions"})
    assert [texts(done, 0), texts(done, 1)] == [[("region", "a bus")], [("region", "sky")]]
    assert done.lost("region") == {
        "region 71": "unknown image",
        "region 72": "unknown image",
        "region 21": "unknown image",
        "region 13": "picture listed twice",
        "region 14": "unknown image",
        "region 81": "unknown image",
    }
    assert done.lost("line") == {
        "region_descriptions.json[5]": "no list of regions",
        "region_descriptions.json[6]": "not an object",
    }


def test_pictures_of_the_list_are_checked(root: Path, prepare_store: Prepare) -> None:
    draw(root, "VG_100K_2/4.jpg")
    draw(root, "VG_100K/5.jpg")
    Image.new("RGB", (80, 45)).save(root / "VG_100K" / "6.jpg")
    (root / "VG_100K" / "8.jpg").write_bytes(b"<html>")
    pictures = [
        image(1, coco_id=5, flickr_id=6),
        image(3),
        image(4),  # in the other folder than told
        {"image_id": 5},
        image(6),
        "nothing",
        image(1, "VG_100K_2"),
        {"image_id": None, "url": "x"},
        image(8),
        image(9, coco_id=5),
    ]
    draw(root, "VG_100K/9.jpg")
    write(root, "image_data", pictures)
    regions = [{"id": id, "regions": [region(id, id, "a bus")]} for id in (1, 3, 4, 5, 6, 8, 9)]
    write(root, "region_descriptions", regions)
    done = prepare_store("visual-genome", {"root": root, "parts": "regions"})
    assert [(r.id, r.image) for r in done.records] == [
        ("1", "VG_100K/1.jpg"),
        ("4", "VG_100K_2/4.jpg"),
        ("5", "VG_100K/5.jpg"),
        ("9", "VG_100K/9.jpg"),
    ]
    # Some photographs are in COCO under one id and here under two.
    assert [done.records[i].same_as for i in (0, 3)] == [
        ("coco:5", "flickr:6", "vg:1"),
        ("coco:5", "vg:9"),
    ]
    lost = done.lost("picture")
    assert lost.pop("8").startswith("not a")
    assert lost == {
        "3": "missing",
        "6": "size mismatch",
        "image_data.json[5]": "not an object",
        "image_data.json[6]": "picture listed twice",
        "image_data.json[7]": "no id",
    }
    assert done.lost("region")["region 3"] == "picture: missing"


ORDERS = {"backwards": [3, 2, 1, 0], "shuffled": [2, 0, 3, 1], "one missing": [1, 3, 0]}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_the_order_of_the_files_does_not_matter(
    tmp_path: Path, prepare_store: Prepare, order: list[int]
) -> None:
    root = tmp_path / "vg"
    draw(root, *(f"VG_100K/{id}.jpg" for id in range(4)))
    write(root, "image_data", [image(id) for id in range(4)])

    def entries(order: Iterable[int], **also: int) -> tuple[list[Any], list[Any]]:
        regions = [{"id": i, "regions": [region(i, i, f"region {i}")]} for i in order]
        objects = [{"image_id": i, "objects": [thing(i, [f"object {i}"])]} for i in order]
        return regions, objects

    options = {"root": root, "parts": "regions,objects", "attributes": False}
    for name, content in zip(FILES[1:3], entries(order), strict=True):
        write(root, name, content)
    done = prepare_store("visual-genome", options)
    assert ids(done) == [str(i) for i in range(4) if i in order]
    for record in done.records:
        assert [r.text for r in record.regions] == [f"region {record.id}", f"object {record.id}"]
    write(root, "objects", entries(range(4))[1])  # now in another order than the regions
    done = prepare_store("visual-genome", options)
    assert ids(done) == ["0", "1", "2", "3"]
    for record in done.records:
        assert record.regions[-1].text == f"object {record.id}"
    assert done.count("region")["kept"] == 4 + len(order)


def test_files_of_other_names_are_told_apart_by_what_is_in_them(
    root: Path, tmp_path: Path, prepare_store: Prepare
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for number, name in enumerate(FILES):
        (root / f"{name}.json").rename(elsewhere / f"{number}.json")
    annotations = [elsewhere / f"{number}.json" for number in (4, 0, 1)]
    done = prepare_store("visual-genome", {"annotations": annotations, "images": root})
    assert [kind for kind, _ in texts(done)] == ["region", "relation"]
    (elsewhere / "1.json").rename(root / "region_descriptions_v1.json")
    (elsewhere / "0.json").rename(root / "image_data.json")
    done = prepare_store("visual-genome", {"root": root, "parts": "regions", "split": "val"})
    assert [record.split for record in done.records] == ["val", "val"]


def test_what_is_not_there_is_named(root: Path, tmp_path: Path, prepare_store: Prepare) -> None:
    def refused(what: str, try_: str = "", error: type = DataError, **options: object) -> None:
        with pytest.raises(error, match=what) as caught:
            prepare_store("visual-genome", {"root": root, **options})
        assert try_ in (caught.value.try_ or "")

    with pytest.raises(UsageError, match="where Visual Genome is was not said"):
        prepare_store("visual-genome", {})
    refused("there is no folder", "--root", root=tmp_path / "none")
    refused("no 'region'; there are", "--parts regions", UsageError, parts="region")
    refused("none of the files", "", UsageError, parts="attributes", attributes=False)
    refused(r"none of the first 2 pictures is in", "--images", images=tmp_path)
    (root / "relationships.json").rename(root / "relationships_v1_2.json")
    write(root, "relationships_v1_4", [])
    refused("relationships several times: relationships_v1_2.json", "--annotations")
    for version in (2, 4):
        (root / f"relationships_v1_{version}.json").unlink()
    refused("there is no relationships.json in", "--parts regions,objects to do without")
    (root / "attributes.json").unlink()
    refused("there is no attributes.json in", "--no-attributes", parts="objects")
    (root / "attributes.json").write_text((root / "objects.json").read_text())
    refused("is not the attributes of Visual Genome", "--annotations", parts="objects")
    objects = (root / "objects.json").read_text()
    (root / "objects.json").write_text(objects[:-30])
    refused(r"objects\.json is not valid JSON", parts="objects", attributes=False)
    refused("both have objects", annotations=[root / "attributes.json", root / "objects.json"])
    write(root, "other", [{"a": 1}])
    refused("is no file of Visual Genome", "image_data", annotations=[root / "other.json"])
    (root / "image_data.json").unlink()
    refused("there is no image_data.json in", "unpack it", parts="regions")
    write(root, "image_data", [{"id": 1, "regions": []}])
    refused("is not the image_data of Visual Genome", parts="regions")


def test_no_picture_is_opened_and_little_is_held_while_the_files_are_read(root: Path) -> None:
    (root / "VG_100K" / "1.jpg").write_bytes(b"no picture")
    plan = SOURCE.plan(checked_options(SOURCE, {"root": root}))
    assert plan.total == 2
    assert [path.stem for path in plan.inputs] == list(FILES)
    events = list(plan.events)
    assert [len(event.parts) for event in events] == [4, 4]  # type: ignore[union-attr]


# ------------------------------------------------------------------ the agreed sample


@pytest.fixture
def agreed(shared: Path) -> dict[str, Any]:
    files = json.loads((shared / "data" / "expected_counts.json").read_text())["files"]
    return {name.split("/")[1]: v for name, v in files.items() if "visual_genome" in name}


INVALID = ("box not finite", "box has no area", "box outside the picture", "box malformed")


@pytest.mark.parametrize(("part", "file"), [("regions", FILES[1]), ("objects", FILES[2])])
def test_counts_of_the_sample_are_the_expected_ones(
    shared: Path, agreed: dict[str, Any], prepare_store: Prepare, part: str, file: str
) -> None:
    options = {"root": shared / "data" / "visual_genome", "parts": part, "attributes": False}
    expected = agreed[f"{file}.json"][part]

    def run(**more: object) -> Prepared:
        return prepare_store("visual-genome", {**options, **more})

    done = run()
    pictures = agreed["image_data.json"]
    assert done.count("picture")["read"] == pictures["images"]
    assert done.dropped("picture")["missing"] == pictures["images"] - pictures["images_on_disk"]
    missing = expected["read_on_images_missing_on_disk"]
    dropped = done.dropped("region")
    assert done.count("region")["read"] == expected["read"] + missing
    assert dropped.get("picture: missing", 0) == missing
    assert done.count("region")["kept"] == expected["kept"]
    assert sum(dropped.get(reason, 0) for reason in INVALID) == expected["invalid_box"]
    assert dropped["box too small"] == expected["box_below_1_percent"]
    assert dropped["empty text"] == expected["empty_text"]
    assert dropped.get("text overlap", 0) == expected.get("text_overlap_above_75_percent", 0)
    assert len(done.records) == expected["images_with_a_kept_box"]
    for rule in ("int", "half-px"):
        key = f"kept_if_box_check_is_{rule.replace('-', '_')}"
        assert run(invalid_boxes=rule).count("region")["kept"] == expected[key]
    if part == "regions":
        shorter = run(text_overlap="shorter").count("region")["kept"]
        assert shorter == expected["kept_if_overlap_is_measured_against_the_shorter_text"]


@pytest.mark.parametrize(("part", "file"), [("regions", FILES[1]), ("objects", FILES[2])])
def test_pictures_of_test_sets_are_found_by_coco_id_and_by_flickr_photo(
    shared: Path, agreed: dict[str, Any], prepare_store: Prepare, part: str, file: str
) -> None:
    data = shared / "data"
    options = {"root": data / "visual_genome", "parts": part, "attributes": False}
    expected = agreed[f"{file}.json"][part]
    karpathy = str(data / "coco_karpathy" / "dataset_coco.json")
    flickr = str(data / "flickr30k" / "dataset_flickr30k.json") + ":all"
    done = prepare_store("visual-genome", {**options, "exclude": [karpathy]})
    key = "kept_after_removing_karpathy_val_and_test_images"
    assert done.count("region")["kept"] == expected[key]
    excluded = done.dropped("picture")["excluded"]
    assert excluded == agreed["image_data.json"]["coco_id_in_karpathy_val_or_test"]
    coco = str(data / "coco" / "annotations")
    names = [f"{coco}/instances_{split}2017.json" for split in ("train", "val")]
    both = {"exclude": [karpathy, flickr], "same_photos": names}
    done = prepare_store("visual-genome", {**options, **both})
    key = "kept_after_also_removing_flickr30k_photos"
    assert done.count("region")["kept"] == expected[key]


def test_attributes_and_relationships_of_the_sample_are_all_read(
    shared: Path, agreed: dict[str, Any], prepare_store: Prepare
) -> None:
    root = shared / "data" / "visual_genome"
    done = prepare_store("visual-genome", {"root": root, "parts": "attributes"})
    assert done.count("region")["read"] == agreed["attributes.json"]["attributes"]
    assert {region.kind for record in done.records for region in record.regions} == {"attribute"}
    done = prepare_store("visual-genome", {"root": root, "parts": "relationships"})
    assert done.count("region")["read"] == agreed["relationships.json"]["relationships"]
    done = prepare_store("visual-genome", {"root": root})
    objects = agreed["objects.json"]["objects"]["kept"]
    kinds = [region.kind for record in done.records for region in record.regions]
    assert kinds.count("object") == objects
    assert kinds.count("region") == agreed["region_descriptions.json"]["regions"]["kept"]
