from __future__ import annotations

import pytest

from xvlm_core.config.yaml_tree import load_mapping, load_value
from xvlm_core.errors import ConfigError


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_mapping(text, "here.yaml")
    assert "here.yaml" in (caught.value.where or "")
    return caught.value


def test_keys_come_with_their_lines() -> None:
    tree = load_mapping("a: 1\nb:\n  c: [1, 2]\n  d: {e: x}\n", "here.yaml")
    assert tree.tree == {"a": 1, "b": {"c": [1, 2], "d": {"e": "x"}}}
    assert tree.lines == {"a": 1, "b": 2, "b.c": 3, "b.d": 4, "b.d.e": 4}


def test_an_empty_file_is_an_empty_mapping() -> None:
    assert load_mapping("# nothing\n", "here.yaml").tree == {}


def test_a_key_that_is_there_twice_is_refused_with_both_lines() -> None:
    error = refused("a:\n  b: 1\n  c: 2\n  b: 3\n")
    assert error.details == ("line 4: key a.b is there twice (first in line 2)",)


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "grows without end" in refused("\n".join(lines)).what


def test_a_value_that_holds_itself_is_refused() -> None:
    assert "grows without end" in refused("a: &a [*a]\n").what


def test_merged_sections_are_allowed() -> None:
    tree = load_mapping("x: &x {a: 1, b: 2}\ny:\n  <<: *x\n  b: 3\n", "here.yaml").tree
    assert tree["y"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system [id]",
        "a: !!python/name:os.system ''",
        "a: [1, 2",
        "a: b: c",
        "\ta: 1",
        "- a\n- b",
        "just text",
        "a: 1\n---\nb: 2\n",
        "a: \x00",
        "? [a, b]\n: c",
    ],
)
def test_what_is_not_a_plain_mapping_is_refused(text: str) -> None:
    refused(text)


@pytest.mark.parametrize("text", ["a: .nan", "a: {b: .inf}", "a: [1, -.inf]", "a: 2020-01-02"])
def test_values_that_no_recipe_can_hold_are_refused(text: str) -> None:
    assert refused(text).details


@pytest.mark.parametrize("text", ["a: {1: x}", "true: x", "a: [{2: x}]"])
def test_keys_must_be_text(text: str) -> None:
    assert "must be text" in refused(text).details[0]


def test_the_line_of_a_syntax_error_is_named() -> None:
    assert refused("a: 1\nb: c: d\ne: 2\n").where == "here.yaml:2"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("tiny", "tiny"),
        ("null", None),
        ("[a, b]", ["a", "b"]),
        ("1.0e-4", 1e-4),
        ("", None),
    ],
)
def test_values_of_overrides_are_yaml(text: str, value: object) -> None:
    assert load_value(text, "the override") == value
