from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xvlm_core.errors import OutputError, UsageError
from xvlm_core.sources.base import Plan, Source
from xvlm_core.sources.drafts import Draft, Event
from xvlm_core.sources.prepare import prepare_plan, rules_of
from xvlm_core.sources.registry import COMMON, SOURCES, checked_options, find_source, options_of


def test_an_unknown_source_names_the_near_one() -> None:
    with pytest.raises(UsageError, match="no source 'cocoo'") as caught:
        find_source("cocoo")
    assert caught.value.try_ == "xvlm prepare-data coco"


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_a_plan_and_defaults_that_hold(name: str) -> None:
    source = SOURCES[name]
    assert source.name == name
    assert callable(source.plan)
    own, common = ({option.name for option in part} for part in (source.options, COMMON))
    assert not own & common, "an option means the same in every source"
    required = {o.name: "x" for o in source.options if o.required}
    defaults = checked_options(source, required)
    assert set(defaults) == own | common
    given = {k: v for k, v in defaults.items() if v is not None}
    assert checked_options(source, given) == defaults


def test_the_rules_of_a_source_hold_where_nothing_else_is_said() -> None:
    coco = SOURCES["coco"]
    assert rules_of(coco.rules, checked_options(coco, {})) == coco.rules
    rules = rules_of(
        coco.rules, checked_options(coco, {"min_box_area": 0, "invalid_boxes": "clip"})
    )
    assert (rules.min_box_area, rules.invalid_boxes, rules.max_text_overlap) == (0, "clip", 0.75)
    helps = {option.name: option.help for option in options_of(coco)}
    assert "(default: 0.01 for COCO's own files, else 0.0)" in helps["min_box_area"]
    assert "(default: strict)" in helps["invalid_boxes"]
    helps = {option.name: option.help for option in options_of(SOURCES["visual-genome"])}
    assert "(default: 0.01)" in helps["min_box_area"]


def test_listing_the_sources_loads_nothing_heavy() -> None:
    code = "import sys, xvlm_core.sources.registry; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "PIL", "pyarrow", "ray", "pydantic", "scipy"}
    assert not heavy & set(done.stdout.split())


def test_options_are_typed() -> None:
    values = checked_options(
        SOURCES["coco"], {"root": "coco", "min_box_area": "0.5", "annotations": ["a", "b"]}
    )
    assert values["root"] == Path("coco")
    assert values["min_box_area"] == 0.5
    assert values["annotations"] == (Path("a"), Path("b"))
    assert checked_options(SOURCES["world"], {"train": "7"})["train"] == 7


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("world", {"trian": 3}, "world has no option --trian"),
        ("world", {"train": "many"}, "--train 'many' is not of type int"),
        ("world", {"train": -1}, "--train -1 is below 0"),
        ("world", {"size": 5000}, "--size 5000 is above 4096"),
        ("world", {"train": True}, "--train True is not of type int"),
        ("world", {"train": [1, 2]}, "--train takes one value"),
        ("coco", {"crowd": "yes"}, "--crowd 'yes' is not of type bool"),
        ("coco", {"min_box_area": float("nan")}, "--min-box-area nan is not of type float"),
        ("jsonl", {"images": "x"}, "--annotations is missing"),
    ],
)
def test_options_that_do_not_hold_are_named(
    source: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        checked_options(SOURCES[source], options)
    assert caught.value.what.startswith(message)
    assert caught.value.try_ == f"xvlm prepare-data {source} --help"


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(UsageError) as caught:
        checked_options(SOURCES["jsonl"], {"imagse": "x", "box_unit": "cm"})
    assert len([caught.value.what, *caught.value.details]) == 4


def test_a_full_folder_is_refused_before_the_source_is_read(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mine.txt").write_text("mine")
    read = []

    def events() -> Iterator[Event]:
        read.append(1)
        yield Draft("1", ("a.jpg",))

    source = Source("own", "made up", (), lambda options: Plan(events(), tmp_path, ()))
    plan = source.plan({})
    values = checked_options(source, {})
    with pytest.raises(OutputError, match="is not empty"):
        prepare_plan(source, plan, tmp_path / "store", values, command="x")
    assert read == []
