"""The counts agreed for the samples, every one of them, from what the sources read and keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.sources.agreed import (
    COCO_2014,
    INVALID,
    KARPATHY,
    SHARED,
    Check,
    Figures,
    Run,
    agreed,
    boxes,
)
from tests.sources.agreed_tasks import nlvr2_files, refcoco_files, vqa_files
from xvlm_core.errors import DataError
from xvlm_core.sources.openimages_rows import Tabled
from xvlm_core.sources.strict_json import iter_array
from xvlm_core.sources.tar_index import read_tar


def coco_boxes(name: str, images: Path) -> Check:
    def check(figures: Figures, run: Run) -> None:
        options: dict[str, Any] = {"annotations": [SHARED / name], "images": images}
        if name.endswith("/instances.json"):  # not a name of COCO's: no rule of the paper is on
            options["min_box_area"] = 0.01
        made = boxes(figures.part("objects"), run, "coco", **options)
        assert made.read("picture") == figures["images"]

    return check


def coco_captions(name: str) -> Check:
    def check(figures: Figures, run: Run) -> None:
        options = {"annotations": [SHARED / name], "images": SHARED / "coco"}
        made = run("coco", **options)
        assert made.read("picture") == figures["images"]
        assert made.read("caption") == figures["captions"]
        assert made.kept("caption") == figures["captions_with_text_after_cleaning"]
        left = run("coco", **options, exclude=[KARPATHY], split="train")
        assert left.kept("caption") == figures["captions_on_images_outside_karpathy_val_and_test"]

    return check


def karpathy(folder: str, images: Path) -> Check:
    def check(figures: Figures, run: Run) -> None:
        made = run("karpathy", root=SHARED / folder, images=images, restval="restval")
        assert made.kept("picture") == made.read("picture") == figures["images"]
        assert made.kept("caption") == made.read("caption") == figures["captions"]
        assert made.by_split(lambda record: 1) == figures["images_by_split"]
        assert made.by_split(lambda r: len(r.captions)) == figures["captions_by_split"]
        if "coco_images_with_the_same_flickr_photo" in figures:
            coco = run(
                "coco",
                root=SHARED / "coco",
                split="train",  # what is held out itself is never excluded
                exclude=[f"{run.folder}/store-0:train,val,test"],
            )
            same = figures["coco_images_with_the_same_flickr_photo"]
            assert coco.dropped("picture", "excluded") == same

    return check


def published_list(name: str, columns: str) -> Check:
    """A list without pictures: each row finds a made one."""

    def check(figures: Figures, run: Run) -> None:
        made = run(
            "web-pairs",
            annotations=[SHARED / name],
            images=run.pictures([f"{row}.jpg" for row in range(1, figures["rows"] + 1)]),
            columns=columns,
            name_template="{row}.jpg",
        )
        assert made.read("picture") == made.kept("picture") == figures["rows"]
        assert made.kept("caption") == figures["rows"]

    return check


def sbu_lists(figures: Figures, run: Run) -> None:
    made = run(
        "web-pairs",
        annotations=[
            SHARED / "sbu" / f"SBU_captioned_photo_dataset_{part}.txt"
            for part in ("urls", "captions")
        ],
        images=run.pictures([f"{row}.jpg" for row in range(1, figures["rows"] + 1)]),
        name_template="{row}.jpg",
    )
    assert made.kept("picture") == made.kept("caption") == figures["rows"]


def parquet(folder: str) -> Check:
    def check(figures: Figures, run: Run) -> None:
        made = run("web-pairs", root=[SHARED / folder])
        assert made.read("picture") == figures["rows"]
        status = figures.part("by_status")
        assert made.kept("picture") == status["success"]
        for failure in ("failed_to_download", "failed_to_resize"):
            assert made.dropped("picture", failure) == status[failure]

    return check


def tar(name: str) -> Check:
    def check(figures: Figures, run: Run) -> None:
        made = run("webdataset", root=[SHARED / name])
        assert made.kept("picture") == made.read("picture") == figures["images"]
        assert made.kept("caption") == made.read("caption") == figures["captions"]
        assert len(list(read_tar(SHARED / name))) == figures["members"]

    return check


def objects365(figures: Figures, run: Run) -> None:
    part = figures.part("objects")
    made = boxes(part, run, "objects365", root=SHARED / "objects365")
    assert made.read("picture") == figures["images"]
    assert made.kept("region") == part["kept_on_images_present_on_disk"]
    present = made.read("picture") - made.dropped("picture", "missing")
    assert present == figures["images_on_disk"]


def official_lines(name: str) -> Check:
    def check(figures: Figures, run: Run) -> None:
        options = {"root": [SHARED / name]}
        if name.endswith("_path"):
            options["images"] = SHARED
        made = run("xvlm-official", **options)
        assert made.kept("picture") == made.read("picture") == figures["images"]
        assert made.kept("caption") == made.read("caption") == figures["captions"]
        if "elems" in figures:
            one = run("xvlm-official", **options, alternatives=False, attributes=False)
            assert one.read("region") == figures["elems"]
            as_released = run(
                *("xvlm-official",),
                **options,
                alternatives=False,
                attributes=False,
                invalid_boxes="int",
            )
            assert as_released.kept("region") == figures["elems_passing_the_official_box_check"]

    return check


def official_list(name: str, images: Path) -> Check:
    def check(figures: Figures, run: Run) -> None:
        made = run("xvlm-official", root=[SHARED / name], images=images)
        assert made.kept("picture") == made.read("picture") == figures["images"]
        assert made.kept("caption") == made.read("caption") == figures["captions"]
        assert made.kept("line") == made.read("line") == figures["records"]

    return check


def ground_truth(name: str) -> Check:
    """Captions of COCO ids, without the names of pictures: no data to train on, but read."""

    def check(figures: Figures, run: Run) -> None:
        with pytest.raises(DataError, match="nothing to keep") as caught:
            run("coco", annotations=[SHARED / name], images=COCO_2014)
        found = set(caught.value.details)
        assert f"picture: {figures['images']} dropped, no image" in found
        assert f"caption: {figures['captions']} dropped, unknown image" in found

    return check


def visual_genome(figures: Figures, run: Run) -> None:
    """Regions or objects, alone."""
    part = "regions" if "regions" in figures else "objects"
    options = {"root": SHARED / "visual_genome", "parts": part, "attributes": False}
    made = boxes(figures.part(part), run, "visual-genome", **options)
    assert made.read("picture") == figures["images"]


def vg_attributes(figures: Figures, run: Run) -> None:
    made = run("visual-genome", root=SHARED / "visual_genome", parts="attributes")
    assert made.read("picture") == figures["images"]
    assert made.read("region") == figures["attributes"]
    entries = iter_array(SHARED / "visual_genome" / "attributes.json")
    objects = [found for entry in entries for found in entry["attributes"]]
    assert len(objects) == figures["objects"]
    drafts = run.drafts("visual-genome", root=SHARED / "visual_genome", parts="attributes")
    with_attributes = {said.where.split(".")[0] for draft in drafts for said in draft.said}
    assert len(with_attributes) == figures["objects_with_attributes"]


def vg_relationships(figures: Figures, run: Run) -> None:
    made = run("visual-genome", root=SHARED / "visual_genome", parts="relationships")
    assert made.read("picture") == figures["images"]
    assert made.read("region") == figures["relationships"]


def vg_pictures(figures: Figures, run: Run) -> None:
    options = {"root": SHARED / "visual_genome", "parts": "regions"}
    made = run("visual-genome", **options)
    missing = made.dropped("picture", "missing")
    assert made.read("picture") == figures["images"]
    assert made.read("picture") - missing == figures["images_on_disk"]
    left = run("visual-genome", **options, exclude=[KARPATHY])
    excluded = left.dropped("picture", "excluded")
    assert excluded == figures["coco_id_in_karpathy_val_or_test"]
    ids = [name for r in made.records for name in r.same_as if name.startswith("coco:")]
    assert len(set(ids)) == figures["distinct_coco_ids"]
    assert len(ids) == figures["with_coco_id"]


def openimages(name: str) -> Check:
    """Boxes, or relations and attributes."""

    def check(figures: Figures, run: Run) -> None:
        options = {
            "root": SHARED / "openimages",
            "annotations": [SHARED / "openimages" / name],
        }
        part = "objects" if "objects" in figures else "regions"
        made = boxes(figures.part(part), run, "openimages", **options)
        assert made.read("picture") == figures["images"]
        if "relations" in figures:
            drafts = run.drafts("openimages", **options)
            kinds = [said.kind for draft in drafts for said in draft.said]
            assert len(kinds) == figures["relations"]
            assert kinds.count("attribute") == figures["attribute_rows"]

    return check


def openimages_classes(figures: Figures, run: Run) -> None:
    options = {"root": SHARED / "openimages", "parts": "boxes"}
    first = next(iter(run.events("openimages", **options)))
    assert isinstance(first, Tabled)
    assert len(first.meaning.names) == figures["classes"]


def openimages_files() -> dict[str, Check]:
    names = (
        "train-annotations-bbox.csv",
        "oidv6-train-annotations-bbox.csv",
        "oidv6-train-annotations-vrd.csv",
        "challenge-2019-train-vrd.csv",
    )
    found = {f"openimages/{name}": openimages(name) for name in names}
    found["openimages/class-descriptions-boxable.csv"] = openimages_classes
    return found


def hostile_lines(name: str) -> Check:
    def check(figures: Figures, run: Run) -> None:
        folder = SHARED / "hostile"
        made = run("jsonl", annotations=[folder / name], images=folder)
        assert made.read("line") == figures["lines"]
        if "kept" in figures:
            assert made.kept("caption") == figures["kept"]
        else:
            kept = figures["kept_if_it_is_replaced"]
            assert (
                made.kept("caption")
                == kept
                == figures["kept_if_the_lone_surrogate_is_rejected"] + 1
            )

    return check


def hostile_boxes(name: str) -> Check:
    def check(figures: Figures, run: Run) -> None:
        folder = SHARED / "hostile"
        made = run("coco", annotations=[folder / name], images=folder, min_box_area=0.01)
        assert made.read("region") == figures["boxes"]
        assert made.kept("region") == figures["kept"]
        for key, reasons in (
            ("invalid", INVALID[:3]),
            ("below_1_percent", ("box too small",)),
            ("malformed", ("box malformed",)),
            ("not_finite", ("box not finite",)),
        ):
            if key in figures:
                assert made.dropped("region", *reasons) == figures[key]

    return check


def hostile_rows(figures: Figures, run: Run) -> None:
    made = run(
        "web-pairs",
        annotations=[SHARED / "hostile" / "odd_rows.tsv"],
        images=run.pictures([f"{row}.jpg" for row in range(1, 7)]),
        columns="caption,url",
        name_template="{row}.jpg",
    )
    lost = made.read("line") - made.kept("line") + made.read("caption") - made.kept("caption")
    assert made.kept("caption") == figures["kept"]
    assert made.kept("caption") + lost == figures["rows"]


def hostile_binary(figures: Figures, run: Run) -> None:
    made = run("xvlm-official", root=[SHARED / "hostile" / "bad_binary.jsonl"])
    assert made.read("line") == figures["lines"]
    assert made.kept("picture") == figures["kept"]


def hostile_tar(name: str, key: str) -> Check:
    def check(figures: Figures, run: Run) -> None:
        assert len(run("webdataset", root=[SHARED / name]).records) == figures[key]

    return check


def official_lists() -> dict[str, Check]:
    flickr = SHARED / "flickr30k"
    found: dict[str, Check] = {}
    for split in ("train", "val", "test"):
        for name, images in (
            (f"coco_karpathy/coco_karpathy_{split}.json", COCO_2014),
            (f"coco_{split}.json", COCO_2014),
            (f"flickr30k_{split}.json", flickr),
        ):
            name = f"xvlm_official/finetune/{name}"
            found[name] = official_list(name, images)
        if split != "train":
            name = f"xvlm_official/finetune/coco_karpathy/coco_karpathy_{split}_gt.json"
            found[name] = ground_truth(name)
    return found


def web() -> dict[str, Check]:
    found: dict[str, Check] = {}
    for name in ("cc3m", "cc12m", "sbu"):
        found[f"{name}/00000.parquet"] = parquet(name)
        found[f"{name}/00000.tar"] = tar(f"{name}/00000.tar")
    for name, columns in (
        ("cc3m/Train_GCC-training.tsv", "caption,url"),
        ("cc3m/Validation_GCC-1.1.0-Validation.tsv", "caption,url"),
        ("cc12m/cc12m.tsv", "url,caption"),
    ):
        found[name] = published_list(name, columns)
    for part in ("urls", "captions"):
        found[f"sbu/SBU_captioned_photo_dataset_{part}.txt"] = sbu_lists
    return found


CHECKS: dict[str, Check] = {
    **{
        name: coco_boxes(name, SHARED / "coco")
        for name in (
            "coco/annotations/instances_train2017.json",
            "coco/annotations/instances_val2017.json",
        )
    },
    **{
        f"{name}/instances.json": coco_boxes(f"{name}/instances.json", COCO_2014)
        for name in ("refcoco", "refcoco+", "refcocog")
    },
    **{
        name: coco_captions(name)
        for name in (
            "coco/annotations/captions_train2017.json",
            "coco/annotations/captions_val2017.json",
        )
    },
    "coco_karpathy/dataset_coco.json": karpathy("coco_karpathy", COCO_2014),
    "flickr30k/dataset_flickr30k.json": karpathy("flickr30k", SHARED / "flickr30k"),
    "visual_genome/region_descriptions.json": visual_genome,
    "visual_genome/objects.json": visual_genome,
    "visual_genome/attributes.json": vg_attributes,
    "visual_genome/relationships.json": vg_relationships,
    "visual_genome/image_data.json": vg_pictures,
    **openimages_files(),
    **web(),
    **refcoco_files(),
    **vqa_files(),
    **nlvr2_files(),
    "objects365/zhiyuan_objv2_train.json": objects365,
    **{
        f"xvlm_official/pretrain/{name}": official_lines(f"xvlm_official/pretrain/{name}")
        for name in ("general_path", "general_binary", "regions_path", "regions_binary")
    },
    **official_lists(),
    **{
        f"hostile/{name}.jsonl": hostile_lines(f"{name}.jsonl")
        for name in ("captions_odd", "path_traversal", "truncated", "middle_broken", "bom_crlf")
    },
    "hostile/bad_boxes.json": hostile_boxes("bad_boxes.json"),
    "hostile/nan_boxes.json": hostile_boxes("nan_boxes.json"),
    "hostile/missing_refs.json": hostile_boxes("missing_refs.json"),
    "hostile/odd_rows.tsv": hostile_rows,
    "hostile/bad_binary.jsonl": hostile_binary,
    "hostile/evil.tar": hostile_tar("hostile/evil.tar", "samples_kept"),
    "hostile/truncated.tar": hostile_tar("hostile/truncated.tar", "whole_samples_before_the_cut"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_counts_are_those_agreed(name: str, tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside the repository")
    figures = Figures(agreed()[name])
    CHECKS[name](figures, Run(tmp_path))
    assert figures.not_asked() == []


def test_every_agreed_file_is_checked() -> None:
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside the repository")
    assert sorted(agreed()) == sorted(CHECKS)
