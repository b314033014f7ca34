from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xvlm_core.config.explain import schema_keys
from xvlm_core.config.resolve import describe, dump_recipe, parse_override, resolve
from xvlm_core.errors import ConfigError, UsageError


def refused(*overrides: str, **arguments: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        resolve("pretrain/16m", overrides, **arguments)
    assert caught.value.exit_code == 3
    return caught.value


def detail(*overrides: str, **arguments: Any) -> str:
    details = refused(*overrides, **arguments).details
    assert len(details) == 1, details
    return details[0]


def test_precedence_is_override_flag_environment_recipe_schema() -> None:
    environ = {"XVLM_SEED": "2", "XVLM_TRAIN__DEVICE": "cpu", "XVLM_OPTIM__LR": "2.0e-4"}
    flags = {"seed": 3, "optim.lr": 3.0e-4}
    resolved = resolve("16m", ["seed=4"], flags, environ)
    recipe = resolved.recipe
    assert (recipe.seed, recipe.optim.lr, recipe.train.device) == (4, 3.0e-4, "cpu")
    assert str(resolved.origin("seed")) == "override"
    assert str(resolved.origin("optim.lr")) == "flag"
    assert str(resolved.origin("train.device")) == "environment XVLM_TRAIN__DEVICE"
    assert resolved.origin("text.max_words").source == "recipe"
    assert str(resolved.origin("train.log_every")) == "schema"


def test_compat_goes_for_the_scoring_unless_that_is_told_otherwise(tmp_path: Path) -> None:
    def scored(*overrides: str, name: str = "finetune/world-weak") -> tuple[str | None, str]:
        resolved = resolve(name, overrides)
        return resolved.recipe.scoring.compat, str(resolved.origin("scoring.compat"))

    assert scored() == (None, "schema"), "as the model's run"
    assert scored("compat=official") == ("official", "override")
    assert scored("compat=none") == ("none", "override")
    assert scored("compat=official", "scoring.compat=none") == ("none", "override")
    assert scored("scoring.compat=official") == ("official", "override")
    for overrides in ([], ["compat=official"], ["compat=none"]):
        recipe = resolve("finetune/world-weak", overrides).recipe
        again = tmp_path / "recipe.yaml"
        again.write_text(dump_recipe(recipe))
        assert resolve(str(again)).recipe == recipe, "a run's own recipe stays as it is"


def test_every_value_has_a_row_with_its_origin_and_the_line_of_the_file() -> None:
    resolved = resolve("16m")
    rows = {row.key: row for row in describe(resolved)}
    assert rows["optim.lr"].value == 1e-4
    place, _, line = rows["optim.lr"].origin.removeprefix("recipe ").rpartition(":")
    text = Path(resolved.path).read_text(encoding="utf-8").splitlines()
    assert place.endswith("pretrain/16m.yaml")
    assert text[int(line) - 1].strip().startswith("lr: 1.0e-4")
    assert rows["compat"].origin == "schema"
    leaves = {info.key for info in schema_keys() if not info.is_section}
    leaves = {key for key in leaves if not key.startswith("model.overrides.")}
    lacking = ("data.pairs.", "data.questions.")  # sections that it has not
    leaves = {key for key in leaves if not key.startswith(lacking)}
    assert leaves <= set(rows)


def test_the_environment_is_not_read_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XVLM_SEED", "7")
    assert resolve("16m").recipe.seed == 42


def test_variables_that_are_no_recipe_values_are_left_alone() -> None:
    environ = {"XVLM_DEBUG": "1", "XVLM_RUNS": "/x", "XVLM_CHECKPOINT": "y", "SEED": "9"}
    assert resolve("16m", environ=environ).recipe == resolve("16m").recipe


def test_a_misspelt_variable_is_an_error_that_names_it() -> None:
    text = detail(environ={"XVLM_TRIAN__DEVICE": "cpu"})
    assert "nearest: the section train" in text
    assert "XVLM_TRIAN__DEVICE" in text


def test_an_override_replaces_a_whole_list() -> None:
    recipe = resolve("16m", ["data.images.stores=[coco]", "optim.betas=[0.8, 0.9]"]).recipe
    assert recipe.data.images is not None
    assert recipe.data.images.stores == ("coco",)
    assert recipe.optim.betas == (0.8, 0.9)


def test_null_removes_a_section_and_an_override_below_it_brings_it_back() -> None:
    assert resolve("16m", ["data.images=null"]).recipe.data.images is None
    brought = ["data.images=null", "data.images.stores=[coco]"]
    images = resolve("16m", brought).recipe.data.images
    assert images is not None
    assert images.batch_size == 128


def test_a_tiny_model_takes_one_override() -> None:
    recipe = resolve("16m", ["model.size=tiny", "init.vision=null", "init.text=null"]).recipe
    assert recipe.model.shape().vision.image_size == 128
    assert recipe.init.vision is None


def test_an_unknown_key_names_the_nearest_with_type_and_default() -> None:
    error = refused("optim.weigth_decay=3")
    assert "optim.weigth_decay: unknown key" in error.details[0]
    assert "nearest: optim.weight_decay (number >= 0, default 0.01)" in error.details[0]
    assert error.try_ == "optim.weight_decay=0.01"


def test_an_unknown_key_of_another_section_is_found_there() -> None:
    assert "nearest: text.max_tokens" in detail("model.max_tokens=3")


def test_an_unknown_key_of_the_model_shape_names_the_nearest() -> None:
    assert "nearest: model.overrides.text.dropout" in detail("model.overrides.text.dropot=0.1")


@pytest.mark.parametrize(
    ("override", "found", "expected"),
    [
        ("seed=abc", 'text "abc"', "whole number >= 0"),
        ("seed=1.5", "1.5", "whole number >= 0"),
        ("data.images.batch_size=-1", "-1", "whole number > 0"),
        ("data.mix=other", 'text "other"', "one of extra, joint"),
        ("optim.betas=[0.9, 2]", "2", "list [number >= 0 and < 1, number >= 0 and < 1]"),
        ("data.images.stores=[]", "the list []", "list of text, at least 1"),
        ("init.download=1", "1", "true or false"),
        ("optim.lr=true", "true", "number > 0"),
        ("text.mask_prob=2", "2", "number >= 0 and <= 1"),
        ("schedule=3", "3", "a section"),
        ("seed={a: 1}", "a section", "whole number"),
    ],
)
def test_a_wrong_type_or_value_says_what_was_found_and_expected(
    override: str, found: str, expected: str
) -> None:
    text = detail(override)
    assert f"found {found}" in text
    assert f"expected {expected}" in text
    assert text.startswith(override.partition("=")[0])


@pytest.mark.parametrize(("written", "good"), [("1e-4", "1.0e-4"), ("3E5", "3.0e+5")])
def test_a_number_that_yaml_reads_as_text_says_how_to_write_it(written: str, good: str) -> None:
    error = refused(f"optim.lr={written}")
    assert f"write {good}" in error.details[0]
    assert error.try_ == f"optim.lr={good}"
    assert resolve("16m", [f"optim.lr={good}"]).recipe.optim.lr == float(written)


def test_all_errors_are_reported_together(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("task: pretrain\nseed: x\nfoo: 1\noptim:\n  lr: 1e-4\n")
    with pytest.raises(ConfigError) as caught:
        resolve(str(file), ["train.log_every=0"])
    details = caught.value.details
    # seed, foo, optim.lr, train.log_every, data, schedule
    assert len(details) == 6
    assert any("seed" in text and "own.yaml:2" in text for text in details)
    assert any("optim.lr" in text and "own.yaml:5" in text for text in details)
    assert any("train.log_every" in text and "(override)" in text for text in details)
    assert any(text.startswith("data: missing") for text in details)


def test_rules_between_keys_are_said_in_words() -> None:
    assert "at least one of data.images, data.regions, data.pairs and data.questions" in detail(
        "data.images=null", "data.regions=null"
    )
    assert "one of epochs, max_steps and max_seconds" in detail("schedule.max_steps=null")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.image_size=100", "model.image_size must be a multiple of 32"),
        ("model.overrides.text.hidden_size=100", "multiple of num_heads"),
        ("model.overrides.vision.depths=[1]", "one entry for each stage"),
    ],
)
def test_a_shape_that_cannot_be_is_a_config_error(override: str, words: str) -> None:
    assert words in detail(override)


def test_a_value_is_not_a_section() -> None:
    assert "seed is a value, not a section" in detail("seed.x=3")


@pytest.mark.parametrize("text", ["lr", "=3", "a..b=3", ".a=1"])
def test_what_is_no_override_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="key=value"):
        parse_override(text)


@pytest.mark.parametrize("text", ["a=[1", "a={b", "a=!!python/name:os.system ''"])
def test_an_override_that_is_not_yaml_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError, match="YAML"):
        parse_override(text)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_bytes(b"task: \xff\xfe")
    with pytest.raises(ConfigError, match="cannot read"):
        resolve(str(file))


def test_the_shape_is_validated_only_once_the_recipe_holds() -> None:
    """A wrong recipe and a wrong shape: the recipe's errors come, and nothing else breaks."""
    assert "found" in detail("model.size=huge", "model.image_size=100")


STAGES = """
task: captioning
data: {images: {stores: [a], batch_size: 8}}
optim: {lr: 1.0e-3}
schedule: {epochs: 2}
second_stage:
  optim: {lr: 1.0e-4}
  data: {images: {batch_size: 2}}
  schedule: {epochs: null, max_steps: 5}
"""


def test_the_second_stage_has_the_values_of_the_file_for_it(tmp_path: Path) -> None:
    file = tmp_path / "stages.yaml"
    file.write_text(STAGES, encoding="utf-8")
    first = resolve(str(file)).recipe
    assert (first.optim.lr, first.schedule.epochs, first.schedule.max_steps) == (1e-3, 2, None)
    asked = ["captioning.stage=self_critical", "data.images.batch_size=4"]
    found = resolve(str(file), asked)
    second, images = found.recipe, found.recipe.data.images
    assert images is not None
    assert (second.optim.lr, second.schedule.epochs, second.schedule.max_steps) == (1e-4, None, 5)
    assert images.batch_size == 4, "what is typed goes before the file"
    assert images.stores == ("a",)
    assert found.origin("optim.lr").source == "recipe"
    assert str(found.origin("optim.lr")).endswith("stages.yaml:7")
    assert found.origin("data.images.batch_size").source == "override"
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(second), encoding="utf-8")
    assert resolve(str(again)).recipe == second, "what was typed is not undone"


def test_a_second_stage_that_does_not_hold_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "stages.yaml"
    file.write_text(STAGES.replace("lr: 1.0e-4", "lrr: 1"), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        resolve(str(file), ["captioning.stage=self_critical"])
    assert "lrr" in caught.value.details[0]
    assert "stages.yaml:7" in caught.value.details[0]
