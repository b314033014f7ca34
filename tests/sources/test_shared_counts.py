"""The counts agreed for the samples, every one of them, from what the sources read and keep."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from xvlm_core.data.records import Record
from xvlm_core.data.store import Store
from xvlm_core.errors import DataError
from xvlm_core.sources.prepare import prepare
from xvlm_core.sources.tar_index import read_tar

SHARED = REPOSITORY.parent / "shared" / "data"
KARPATHY = str(SHARED / "coco_karpathy" / "dataset_coco.json")
FLICKR = str(SHARED / "flickr30k" / "dataset_flickr30k.json") + ":all"
COCO_2014 = SHARED / "coco_2014_images"

INVALID = ("box not finite", "box has no area", "box outside the picture", "box malformed")


def agreed() -> dict[str, Any]:
    path = SHARED / "expected_counts.json"
    return json.loads(path.read_text())["files"] if path.is_file() else {}


class Made:
    """A prepared store: what was counted, and its records."""

    def __init__(self, store: Store) -> None:
        self.counts = store.manifest.counts
        self.records: list[Record] = [store[i] for i in range(len(store))]

    def read(self, item: str) -> int:
        return int(self.counts.get(item, {"read": 0})["read"])

    def kept(self, item: str) -> int:
        return int(self.counts.get(item, {"kept": 0})["kept"])

    def dropped(self, item: str, *reasons: str) -> int:
        found = self.counts.get(item, {"dropped": {}})["dropped"]
        return sum(int(found.get(reason, 0)) for reason in reasons)

    def by_split(self, count: Callable[[Record], int]) -> dict[str, int]:
        found: dict[str, int] = {}
        for record in self.records:
            found[record.split] = found.get(record.split, 0) + count(record)
        return found


class Figures:
    """The agreed figures of one file: each must be asked for."""

    def __init__(self, figures: Mapping[str, Any]) -> None:
        self._figures, self._asked = figures, set[str]()
        self._parts: list[tuple[str, Figures]] = []

    def __getitem__(self, name: str) -> Any:
        self._asked.add(name)
        return self._figures[name]

    def __contains__(self, name: str) -> bool:
        return name in self._figures

    def part(self, name: str) -> Figures:
        self._parts.append((name, Figures(self[name])))
        return self._parts[-1][1]

    def not_asked(self) -> list[str]:
        inner = [f"{name}.{key}" for name, part in self._parts for key in part.not_asked()]
        return sorted(set(self._figures) - self._asked) + inner


class Run:
    """Prepares sources into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, 0

    def __call__(self, source: str, **options: Any) -> Made:
        store = self.folder / f"store-{self.made}"
        self.made += 1
        prepare(source, store, {**options, "workers": 1}, command="xvlm prepare-data ...")
        return Made(Store.open(store))

    def pictures(self, names: list[str]) -> Path:
        """A folder with made pictures of these names."""
        folder = self.folder / "pictures"
        folder.mkdir(exist_ok=True)
        for name in names:
            Image.new("RGB", (16, 9)).save(folder / name)
        return folder


Check = Callable[[Figures, Run], None]


def boxes(figures: Figures, run: Run, source: str, **options: Any) -> Made:
    """The figures of cleaning boxes, as every data set of boxes has them."""
    made = run(source, **options)
    missing = made.dropped("region", "picture: missing")
    small = "box_below_1_percent"
    assert made.read("region") == figures["read"]
    assert made.dropped("region", "box too small") == figures[small]
    assert made.dropped("region", *INVALID) == figures["invalid_box"]
    assert made.dropped("region", "empty text") == figures["empty_text"]
    if "text_overlap_above_75_percent" in figures:
        overlap = made.dropped("region", "text overlap")
        assert overlap == figures["text_overlap_above_75_percent"]
    assert made.kept("region") + missing == figures["kept"]
    with_box = sum(bool(record.regions) for record in made.records)
    if "images_with_a_kept_box" in figures:
        assert with_box + made.dropped("picture", "missing") == figures["images_with_a_kept_box"]
    for key, reading in (
        ("kept_if_box_check_is_int", {"invalid_boxes": "int"}),
        ("kept_if_box_check_is_half_px", {"invalid_boxes": "half-px"}),
        ("kept_if_overlap_is_measured_against_the_shorter_text", {"text_overlap": "shorter"}),
    ):
        if key in figures:
            other = run(source, **options, **reading)
            assert other.kept("region") + missing == figures[key], key
    if "crowd_boxes_among_read" in figures:
        other = run(source, **options, crowd=False)
        assert other.dropped("region", "crowd") == figures["crowd_boxes_among_read"]
        assert other.kept("region") + missing == figures["kept_without_crowd_boxes"]
    if "kept_after_removing_karpathy_val_and_test_images" in figures:
        other = run(source, **options, exclude=[KARPATHY])
        expected = figures["kept_after_removing_karpathy_val_and_test_images"]
        missing = other.dropped("region", "picture: missing")
        assert other.kept("region") + missing == expected
    if "kept_after_also_removing_flickr30k_photos" in figures:
        other = run(source, **options, exclude=[KARPATHY, FLICKR])
        expected = figures["kept_after_also_removing_flickr30k_photos"]
        assert other.kept("region") == expected
    return made


def coco_boxes(name: str, images: Path) -> Check:
    def check(figures: Figures, run: Run) -> None:
        options = {"annotations": [SHARED / name], "images": images}
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
        left = run("coco", **options, exclude=[KARPATHY])
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
                "coco", root=SHARED / "coco", exclude=[f"{run.folder}/store-0:train,val,test"]
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


def visual_genome(name: str, **parts: bool) -> Check:
    """One of the files of Visual Genome, alone."""

    def check(figures: Figures, run: Run) -> None:
        options = {"root": SHARED / "visual_genome", **parts}
        key = "regions" if "regions" in figures else "objects"
        part = figures.part(key)
        made = boxes(part, run, "visual-genome", **options)
        assert made.read("picture") == figures["images"]
        missing = made.dropped("region", "picture: missing")
        assert missing == part["read_on_images_missing_on_disk"]

    return check


def vqa_people(record: Record) -> int:
    return sum(
        round(10 * answer.weight) for question in record.questions for answer in question.answers
    )


def vqa(*names: str, **places: Path) -> Check:
    """Questions, with the answers of ten people where the second file has them."""

    def check(figures: Figures, run: Run) -> None:
        files = [SHARED / "vqa" / name for name in names]
        options: dict[str, Any] = {"annotations": files, "images": COCO_2014} if files else {}
        options.update(places)
        made = run("vqa", **options)
        assert made.kept("picture") == made.read("picture") == figures["images"]
        assert made.kept("question") == made.read("question") == figures["questions"]
        if "answers" in figures:
            assert sum(map(vqa_people, made.records)) == figures["answers"]

    return check


def answer_list(figures: Figures, run: Run) -> None:
    path = SHARED / "vqa" / "answer_list.json"
    run("vqa", annotations=[SHARED / "vqa" / "xvlm" / "vqa_train.json"], images=COCO_2014,
        answer_list=path)  # fmt: skip
    found = json.loads((run.folder / "store-0" / "answers.json").read_text())
    assert len(found["answers"]) == figures["answers"]


def nlvr2(name: str) -> Check:
    def check(figures: Figures, run: Run) -> None:
        made = run("nlvr2", annotations=[SHARED / name], images=SHARED / "nlvr2")
        assert made.kept("pair") == made.read("pair") == figures["statements"]
        labels = [record.statement.label for record in made.records if record.statement]
        if "true" in figures:
            assert labels.count(True) == figures["true"]
            pairs = {record.images for record in made.records}
            assert len(pairs) == figures["image_pairs"]
            assert len({path for pair in pairs for path in pair}) == figures["images"]

    return check


def refer(name: str) -> Check:
    """The pickle and the boxes of REFER."""

    def check(figures: Figures, run: Run) -> None:
        options = {"root": SHARED / name, "images": COCO_2014}
        made = run("refcoco", **options)
        assert len({record.image for record in made.records}) == figures["images"]
        assert made.kept("region") == made.read("region") == figures["expressions"]
        assert made.by_split(lambda record: 1) == figures["expressions_by_split"]
        refs = {(record.meta["ref_id"], record.split) for record in made.records}
        assert len(refs) == figures["refs"] == figures["refs_with_valid_box"]
        splits = [split for _, split in refs]
        assert {split: splits.count(split) for split in splits} == figures["refs_by_split"]
        large = run("refcoco", **options, min_box_area=0.01)
        kept = {record.meta["ref_id"] for record in large.records}
        assert len(kept) == figures["refs_with_box_of_1_percent_or_more"]

    return check


def expressions(dataset: str, name: str) -> Check:
    """A list of expressions in another layout."""

    def check(figures: Figures, run: Run) -> None:
        path = SHARED / dataset / name
        made = run("refcoco", root=SHARED / dataset, annotations=[path], images=COCO_2014)
        assert made.kept("region") == made.read("region") == figures["expressions"]
        assert len({record.image for record in made.records}) == figures["images"]

    return check


def refcoco_files() -> dict[str, Check]:
    found: dict[str, Check] = {}
    for dataset, refs, tests in (
        ("refcoco", "unc", ("testA", "testB")),
        ("refcoco+", "unc", ("testA", "testB")),
        ("refcocog", "umd", ("test",)),
    ):
        found[f"{dataset}/refs({refs}).p"] = refer(dataset)
        names = [f"mdetr/finetune_{dataset}_{split}.json" for split in ("train", "val", *tests)]
        names += [f"xvlm/{dataset}_{split}.json" for split in ("train", "val", "test")]
        if dataset == "refcoco+":
            names.append("xvlm/refcoco+_vlue_test.json")
        for name in names:
            found[f"{dataset}/{name}"] = expressions(dataset, name)
    return found


def vqa_files() -> dict[str, Check]:
    found: dict[str, Check] = {"vqa/answer_list.json": answer_list}
    vg = {"vg_images": SHARED / "visual_genome"}
    for split in ("train2014", "val2014", "test2015"):
        questions = f"v2_OpenEnded_mscoco_{split}_questions.json"
        answers = f"v2_mscoco_{split}_annotations.json"
        if split == "test2015":
            found[f"vqa/{questions}"] = vqa(questions)
        else:
            found[f"vqa/{questions}"] = found[f"vqa/{answers}"] = vqa(questions, answers)
    for split in ("train", "val", "test"):
        found[f"vqa/xvlm/vqa_{split}.json"] = vqa(f"xvlm/vqa_{split}.json")
    for name in ("question_answers.json", "xvlm/vg_qa.json"):
        found[f"vqa/{name}"] = vqa(vg=SHARED / "vqa" / name, **vg)
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
        made = run("coco", annotations=[folder / name], images=folder)
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
    **web(),
    **refcoco_files(),
    **vqa_files(),
    **{
        f"nlvr2/{name}.json": nlvr2(f"nlvr2/{name}.json")
        for name in (
            *("train", "dev", "test1"),
            *("xvlm/nlvr_train", "xvlm/nlvr_dev", "xvlm/nlvr_test"),
        )
    },
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
