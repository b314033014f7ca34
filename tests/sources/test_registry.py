from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from xvlm_core.errors import OutputError, UsageError
from xvlm_core.sources.registry import SOURCES, checked_options, find_source, prepare


def test_an_unknown_source_names_the_near_one() -> None:
    with pytest.raises(UsageError, match="no source 'cocoo'") as caught:
        find_source("cocoo")
    assert caught.value.try_ == "xvlm prepare-data coco"


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_its_two_functions_and_defaults_that_hold(name: str) -> None:
    source = SOURCES[name]
    module = importlib.import_module(source.module)
    assert list(inspect.signature(module.image_root).parameters) == ["options"]
    assert list(inspect.signature(module.convert).parameters) == ["writer", "options", "progress"]
    required = {o.name: "x" for o in source.options if o.required}
    defaults = checked_options(source, required)
    assert set(defaults) == {option.name for option in source.options}
    given = {k: v for k, v in defaults.items() if v is not None}
    assert checked_options(source, given) == defaults


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
    (tmp_path / "a.jsonl").write_text("{broken")
    options = {"annotations": [tmp_path / "a.jsonl"], "images": tmp_path}
    with pytest.raises(OutputError, match="is not empty"):
        prepare("jsonl", tmp_path / "store", options, command="x")
