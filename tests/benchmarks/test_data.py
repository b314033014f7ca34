"""The benchmark of the data side runs, tiny, and says what it promises. No times are judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import data
from benchmarks.made_coco import made_up_pictures, make_coco
from benchmarks.measuring import Spent, compare, cpu_seconds, timed
from xvlm_core.sources.prepare import prepare

TINY = data.Size(pictures=30, records=40, sides=(32,), batch=4, batches=2, turns=2)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return data.run(TINY, None)


def test_every_promised_ratio_is_there_with_its_goal(result: dict[str, Any]) -> None:
    goals = {measure["name"]: measure["goal"] for measure in result["measures"]}
    assert goals == {
        "prepare-data, 2 workers, against json.load": 0.5,
        "prepare-data, 1 worker, against json.load": None,
        "load pictures at 32 px, against torchvision": 1.3,
        "load captions at 32 px, against torchvision": None,
        "load regions at 32 px, against torchvision": None,
        "load captions at 32 px and normalise here, against torchvision": None,
        "packed against in place, read and decode": None,
        "packed against in place, read": None,
    }
    for measure in result["measures"]:
        assert measure["ours"] > 0
        assert measure["theirs"] > 0
        assert min(measure["ratios"]) <= measure["ratio"] <= max(measure["ratios"])
    assert json.loads(json.dumps(result))["machine"]["pictures"] == "made up"


def test_a_packed_store_opens_one_file_for_many_pictures(result: dict[str, Any]) -> None:
    notes = [m["notes"] for m in result["measures"] if m["name"].startswith("packed")]
    for note in notes:
        assert note["files_packed"] <= 2  # the shard and its index
        assert note["files_in_place"] >= TINY.records


def test_the_table_has_a_line_for_each_ratio(result: dict[str, Any]) -> None:
    lines = data.table(result).splitlines()
    assert len(lines) == 4 + len(result["measures"])
    assert "| 0.5 x |" in data.table(result)


def test_made_up_pictures_are_a_sound_coco(tmp_path: Path) -> None:
    make_coco(tmp_path / "coco", made_up_pictures(tmp_path / "pictures", 3), 10, 4)
    options = {"root": tmp_path / "coco", "workers": 1}
    manifest = prepare("coco", tmp_path / "store", options, command="...")
    assert manifest.records == 10
    assert manifest.counts["picture"]["dropped"] == {}
    assert manifest.counts["caption"]["kept"] == 50
    assert manifest.counts["region"]["read"] == 70
    assert set(manifest.counts["region"]["dropped"]) <= {"box too small"}
    files = sorted((tmp_path / "coco" / "train2017").iterdir())
    assert len({file.stat().st_ino for file in files[:4]}) == 4


def test_a_ratio_is_how_much_sooner_ours_is() -> None:
    spent = iter([Spent(2.0, 4.0), Spent(1.0, 1.0)] * 3)
    theirs_first = lambda: next(spent)  # noqa: E731
    measure = compare("x", theirs_first, theirs_first, 10, 1, 1.5, notes=1)
    assert measure.ratio == 2.0
    assert measure.cpu_ratio == 4.0
    assert (measure.ours, measure.theirs) == (10.0, 5.0)
    assert measure.notes == {"notes": 1}


def test_processor_time_counts_the_work() -> None:
    before = cpu_seconds()
    spent = timed(lambda: sum(range(3_000_000)))
    assert 0 < spent.cpu <= cpu_seconds() - before
    assert spent.clock > 0
