"""Agreed figures of the data of tasks: expressions, questions, statements, detections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.sources.agreed import COCO_2014, SHARED, Check, Figures, Run
from xvlm_core.data.records import Record


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


def detections(name: str) -> Check:
    def check(figures: Figures, run: Run) -> None:
        made = run(
            "proposals",
            annotations=[SHARED / name],
            instances=SHARED / "refcoco+" / "instances.json",
            images=COCO_2014,
        )
        assert made.kept("picture") == made.read("picture") == figures["images"]
        assert made.kept("proposal") == made.read("proposal") == figures["boxes"]

    return check


def refcoco_files() -> dict[str, Check]:
    found = {name: detections(name) for name in ("refcoco+/dets.json", "refcoco+/cocos.json")}
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


def nlvr2_files() -> dict[str, Check]:
    official = ("xvlm/nlvr_train", "xvlm/nlvr_dev", "xvlm/nlvr_test")
    names = [f"nlvr2/{name}.json" for name in ("train", "dev", "test1", *official)]
    return {name: nlvr2(name) for name in names}
