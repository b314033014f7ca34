"""The lines of docs/pretraining.md that leave a part of the method out: Table 4 of the paper."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.conftest import REPOSITORY
from xvlm_core.data.records import Region
from xvlm_core.data.store import Store, StoreWriter

PAGE = (REPOSITORY / "docs" / "pretraining.md").read_text(encoding="utf-8")
(BASE,) = re.findall(r"^\$ xvlm (pretrain --recipe 4m .*)$", PAGE, re.MULTILINE)
ROWS = re.findall(r"^\| (X-VLM|without [a-z ]+) \| (?:`([^`|]*)`)? ?\|$", PAGE, re.MULTILINE)
LINES = {name: shlex.split(overrides) for name, overrides in ROWS}
SMALL = (
    "model.size=tiny", "init.vision=null", "init.text=null", "text.tokenizer=world",
)  # fmt: skip
TINY = (
    *SMALL, "schedule.max_steps=1", "data.images.batch_size=4", "train.micro_batches=1",
    "data.workers=0", "train.precision=fp32",
)  # fmt: skip
FEW_REGIONS = ("data.regions.max_images=4",)


def values(xvlm: Run, *words: str) -> dict[str, Any]:
    done = xvlm(*shlex.split(BASE), *words, *SMALL, "--dry-run", "--json")
    rows = done.document()["result"]["values"]
    return {row["key"]: row["value"] for row in rows}


def test_the_page_has_the_five_models_of_the_paper() -> None:
    assert list(LINES) == [
        "X-VLM", "without object", "without region", "without box loss", "without all"
    ]  # fmt: skip
    assert [name for name, words in LINES.items() if not words] == ["X-VLM"]


def test_each_line_changes_what_it_says_and_nothing_else(xvlm: Run) -> None:
    whole = values(xvlm)
    assert whole["schedule.max_steps"] == 80_000
    pictures = whole["data.images.batch_size"] + whole["data.regions.max_images"]
    assert pictures == 3_072
    changed = {}
    for name, words in LINES.items():
        found = values(xvlm, *words)
        keys = {**whole, **found}
        changed[name] = {key: found.get(key) for key in keys if whole.get(key) != found.get(key)}
    assert changed["X-VLM"] == {}
    assert changed["without object"] == {
        "data.regions.kinds": ["region", "relation", "phrase"],
        "data.regions.stores": ["vg"],
    }
    assert changed["without region"] == {"data.regions.kinds": ["object", "attribute"]}
    assert changed["without box loss"] == {
        "losses.box_l1.weight": 0.0,
        "losses.box_giou.weight": 0.0,
    }
    without_all = changed["without all"]
    assert without_all.pop("data.images.batch_size") == pictures
    assert all(key.startswith("data.regions") for key in without_all)


@pytest.mark.parametrize("name", list(LINES))
def test_each_line_trains(name: str, xvlm: Run, world_store: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for store in ("coco", "vg", "sbu", "cc3m"):
        (tmp_path / "data" / store).symlink_to(world_store)
    few = () if name == "without all" else FEW_REGIONS
    words = (*shlex.split(BASE), *LINES[name], *TINY, *few, "-o", "run")
    document = xvlm(*words, "--json").document()
    assert document["ok"], document["error"]
    assert document["result"]["step"] == 1
    (line,) = [json.loads(text) for text in Path("run/metrics.jsonl").read_text().splitlines()]
    losses = {"contrastive", "matching", "masked_lm", "box_l1", "box_giou"} & set(line)
    expected = {"contrastive", "matching", "masked_lm"}
    if name not in ("without box loss", "without all"):
        expected |= {"box_l1", "box_giou"}
    assert losses == expected


def test_a_record_without_a_wanted_kind_is_counted_and_said(
    xvlm: Run, world_store: Path, tmp_path: Path
) -> None:
    """COCO has objects alone: read without object, all of it is left out."""
    world = Store.open(world_store)
    for name, kinds in (("coco", ["object"]), ("vg", ["object", "region"])):
        folder = tmp_path / "data" / name
        folder.parent.mkdir(exist_ok=True)
        with StoreWriter(
            folder, image_root=world.image_root, source="x", command="xvlm prepare-data x"
        ) as writer:
            for i in range(4):
                record = world[i]
                box = record.regions[0].box_xyxy_px
                regions = tuple(Region(f"thing {kind}", box, kind) for kind in kinds)  # type: ignore[arg-type]
                writer.add(dataclasses.replace(record, split="train", regions=regions))
    words = (
        *shlex.split(BASE), "data.regions.kinds=[region]", "data.images.stores=[vg]", *TINY,
        *("data.regions.max_images=8", "data.held_out=[]", "-o", "run"),
    )  # fmt: skip
    document = xvlm(*words, "--json").document()
    assert document["ok"], document["error"]
    dropped = document["result"]["dropped"]
    assert dropped["no region of the wanted kinds"] >= 1
    assert any("no region of the wanted kinds" in text for text in document["warnings"])
