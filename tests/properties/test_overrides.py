"""Overrides and recipes: what is written is what is read, and nothing else can happen."""

from __future__ import annotations

import difflib
import json
import string
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.properties.cases import cases
from xvlm_core.config.explain import schema_keys
from xvlm_core.config.resolve import Resolved, describe, dump_recipe, parse_override, resolve
from xvlm_core.config.yaml_tree import leaves, load_mapping, load_value
from xvlm_core.errors import ConfigError, UsageError, XvlmError

RECIPE = "pretrain/world"
KEYS = sorted(info.key for info in schema_keys())
LEAVES = sorted(info.key for info in schema_keys() if not info.is_section)

names = st.text(string.ascii_letters + "_", min_size=1, max_size=6)
ODD = """no Null ~ 1e-4 0x1F 1_000 12:30:45 2001-01-01 .inf = << -a #x &a *a !!str ' " \\ 🦓 [1 {a
a,b %a @a `a | > ? --- ... \ufeff \x00"""
SPACED = ["", " ", "a: b", "- a", "a #b", "? a", "a\nb", "\t", "\x85", "\u2028"]
odd_words = st.sampled_from([*ODD.split(), *SPACED])
texts = st.one_of(st.text(max_size=20), odd_words)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)
trees = st.recursive(
    st.dictionaries(names, st.one_of(scalars, st.lists(values, max_size=4)), max_size=4),
    lambda inner: st.dictionaries(names, st.one_of(scalars, inner), max_size=4),
    max_leaves=12,
)


def rendered(value: object, allow_unicode: bool = False) -> str:
    """As one types it after ``key=``: YAML in one line."""
    text = yaml.safe_dump(
        value,
        default_flow_style=True,
        sort_keys=False,
        allow_unicode=allow_unicode,
        width=float("inf"),
    )
    return text.removesuffix("...\n").removesuffix("\n")


LINE_ENDS = "\x85\u2028\u2029"
"""PyYAML writes them as they are where Unicode is allowed, and reads a plain line end."""


def same(found: object, expected: object) -> bool:
    """Equal, and of equal types all the way down: 1, 1.0 and True are not the same."""
    if type(found) is not type(expected):
        return False
    if isinstance(found, dict):
        assert isinstance(expected, dict)
        return list(found) == list(expected) and all(same(found[k], expected[k]) for k in found)
    if isinstance(found, list):
        assert isinstance(expected, list)
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == expected


@cases(200)
@given(values, st.lists(names, min_size=1, max_size=4), st.booleans())
def test_an_override_is_read_as_it_was_written_with_its_types(
    value: object, path: list[str], allow_unicode: bool
) -> None:
    key, text = ".".join(path), rendered(value, allow_unicode)
    assume(not any(c in text for c in LINE_ENDS))
    found_key, found = parse_override(f"{key}={text}")
    assert found_key == key
    assert same(found, value), found


@cases(120)
@given(trees, st.booleans(), st.booleans())
def test_a_tree_is_read_as_it_was_written_whole_or_leaf_by_leaf(
    tree: dict[str, Any], allow_unicode: bool, flow: bool
) -> None:
    text = yaml.safe_dump(
        tree, default_flow_style=flow, sort_keys=False, allow_unicode=allow_unicode
    )
    assume(not any(c in text for c in LINE_ENDS))
    read = load_mapping(text, "a.yaml")
    assert same(read.tree, tree)
    assert {key for key, _ in leaves(tree)} <= set(read.lines)
    built: dict[str, Any] = {}
    for key, value in leaves(tree):
        found_key, found = parse_override(f"{key}={rendered(value)}")
        *sections, last = found_key.split(".")
        at = built
        for section in sections:
            at = at.setdefault(section, {})
        at[last] = found
    assert same(built, tree)


# Beyond U+FFFF JSON writes two halves of a pair, which YAML does not put together.
json_texts = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=9)


@cases(80)
@given(st.recursive(st.none() | st.booleans() | st.integers() | json_texts, st.lists, max_leaves=8))
def test_json_is_read_as_json(value: object) -> None:
    assert same(load_value(json.dumps(value), "here"), value)


# ------------------------------------------------------------------------------ real recipes

WRITTEN: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 2**63 - 1),
    "about": texts,
    "optim.lr": st.floats(1e-9, 1e3),
    "optim.clip_norm": st.none() | st.floats(1e-3, 10),
    "optim.betas": st.lists(st.floats(0, 0.999), min_size=2, max_size=2),
    "text.mask_prob": st.floats(0, 1),
    "text.max_words": st.integers(1, 999),
    "text.tokenizer": texts,
    "data.augment": st.booleans(),
    "data.validation": st.lists(texts, max_size=3),
    "data.careful_flip": st.none() | st.booleans(),
    "losses.box_l1.weight": st.floats(0, 9),
    "train.device": st.sampled_from(["auto", "cpu", "cuda"]),
}
settings = st.lists(st.sampled_from(sorted(WRITTEN)), min_size=1, max_size=6, unique=True).flatmap(
    lambda keys: st.fixed_dictionaries({key: WRITTEN[key] for key in keys})
)


def value_at(resolved: Resolved, key: str) -> Any:
    return next(row.value for row in describe(resolved) if row.key == key)


@cases(100)
@given(settings)
def test_a_recipe_has_the_values_that_were_said_wherever_they_were_said(
    said: dict[str, Any],
) -> None:
    overrides = [f"{key}={rendered(value)}" for key, value in said.items()]
    environ = {
        "XVLM_" + key.upper().replace(".", "__"): rendered(value) for key, value in said.items()
    }
    resolved = resolve(RECIPE, overrides)
    for key, value in said.items():
        assert same(value_at(resolved, key), value), key
        assert resolved.origin(key).source == "override"
    from_environment = resolve(RECIPE, environ=environ)
    assert from_environment.recipe == resolved.recipe
    assert resolve(RECIPE, flags=said).recipe == resolved.recipe
    others = {key: value for key, value in WRITTEN.items() if key not in said}
    plain = resolve(RECIPE)
    assert all(value_at(resolved, key) == value_at(plain, key) for key in others)


@cases(80)
@given(settings, st.text(st.sampled_from("aß🦓 \n'\"" + LINE_ENDS), max_size=4))
def test_a_recipe_that_is_written_down_is_read_again(
    tmp_path: Path, said: dict[str, Any], about: str
) -> None:
    recipe = resolve(RECIPE, flags={**said, "about": about}).recipe
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert resolve(str(path)).recipe == recipe


@cases(40)
@given(st.permutations(["override", "flag", "environment"]), st.integers(1, 3), st.data())
def test_the_nearest_place_wins(order: list[str], number: int, data: st.DataObject) -> None:
    places = set(order[:number])
    said = {place: data.draw(st.integers(1, 10**6), label=place) for place in places}
    resolved = resolve(
        RECIPE,
        [f"seed={said['override']}"] if "override" in said else [],
        {"seed": said["flag"]} if "flag" in said else {},
        {"XVLM_SEED": str(said["environment"])} if "environment" in said else {},
    )
    winner = next(p for p in ("override", "flag", "environment") if p in places)
    assert resolved.recipe.seed == said[winner]
    assert resolved.origin("seed").source == winner


def closeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


@cases(120)
@given(st.sampled_from([key for key in LEAVES if not key.startswith("model.overrides")]), st.data())
def test_a_wrong_key_names_a_key_at_least_as_near_as_the_one_meant(
    key: str, data: st.DataObject
) -> None:
    section, _, last = key.rpartition(".")
    at = data.draw(st.integers(0, len(last) - 1))
    letter = data.draw(st.sampled_from("aeostxq_"))
    kind = data.draw(st.sampled_from(["left out", "put in", "another"]))
    typo = last[:at] + ("" if kind == "left out" else letter) + last[at + (kind != "put in") :]
    wrong = f"{section}.{typo}" if section else typo
    assume(typo and typo[0] != "." and wrong not in KEYS)
    with pytest.raises(ConfigError) as caught:
        resolve(RECIPE, [f"{wrong}=1"])
    (line,) = (line for line in caught.value.details if line.startswith(f"{wrong}: unknown key"))
    named = line.split("nearest: ")[-1].removeprefix("the section ").split(" ")[0]
    assert named in KEYS, line
    if closeness(last, typo) >= 0.6:
        assert named.rpartition(".")[0] == section
        assert closeness(named.rpartition(".")[2], typo) >= closeness(last, typo)


# ------------------------------------------------------------------------------ from strangers

RUNNING = """!!python/object/apply:os.system !!python/object/new:subprocess.Popen !!python/name:os
!!python/module:os !!python/object/apply:pathlib.Path.touch !x !<tag:x,1:y>"""
PLAIN = """!!int !!float !!bool !!null !!str !!binary !!timestamp !!set !!omap !!pairs !!map !!seq
!!merge !!value &a *a <<:"""
tags, plain_tags = st.sampled_from(RUNNING.split()), st.sampled_from(PLAIN.split())
wrappings = st.sampled_from(["{}", "[1, {}]", "{{a: {}}}", "[[{{b: [{}]}}]]"])


@cases(60)
@given(tags, wrappings, st.booleans())
def test_a_tag_that_would_run_something_is_refused_and_nothing_runs(
    tmp_path_factory: pytest.TempPathFactory, tag: str, wrapping: str, in_list: bool
) -> None:
    trace = tmp_path_factory.getbasetemp() / "ran"
    argument = f"[{trace}]" if "Path" in tag else f'["touch {trace}"]'
    text = wrapping.format(f"{tag} {argument}" if in_list else f"{tag}")
    with pytest.raises(ConfigError):
        load_value(text, "here")
    with pytest.raises(ConfigError):
        resolve(RECIPE, [f"about={text}"])
    assert not trace.exists()


def is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and is_plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)


pieces = st.one_of(
    plain_tags,
    tags,
    odd_words,
    st.sampled_from([*"[]{},:-?!&*#|>'\"%@ \n", ": ", "- ", ", ", "\\ud83d", "\\x00"]),
    st.sampled_from(['"\\ud83d"', '["\\udfff"]', '{"\\ud83d": 1}']),
    st.text(max_size=3),
    st.integers().map(str),
)


@cases(200)
@given(st.lists(pieces, max_size=8).map(" ".join) | st.lists(pieces, max_size=8).map("".join))
def test_any_text_is_plain_json_values_or_an_error_of_ours(text: str) -> None:
    for read in (load_value, load_mapping):
        try:
            value = read(text, "here")
        except ConfigError as error:
            "\n".join(error.lines()).encode()  # can be shown
            continue
        value = value if read is load_value else value.tree
        assert is_plain(value)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    try:
        resolve(RECIPE, [f"about={text}", text])
    except XvlmError:
        return
    assert parse_override(text)[0] in KEYS


@cases(60)
@given(plain_tags, odd_words, wrappings)
def test_a_tag_that_its_text_does_not_fit_is_an_error_of_ours(
    tag: str, text: str, wrapping: str
) -> None:
    for written in (wrapping.format(f"{tag} {text}"), wrapping.format(tag)):
        with suppress(ConfigError):
            assert is_plain(load_value(written, "here"))


@cases(40)
@given(st.text(max_size=12).filter(lambda text: "=" not in text), texts)
def test_what_is_no_key_and_value_is_a_usage_error(text: str, value: str) -> None:
    for wrong in (text, f"={value}", f" ={value}", f"a..b={value}", f".a={value}", f"a.={value}"):
        with pytest.raises(UsageError):
            parse_override(wrong)


def test_the_traps_would_spring_without_the_safe_loader(tmp_path: Path) -> None:
    """What is refused above is no dud: the unsafe loader runs it."""
    trace = tmp_path / "ran"
    yaml.unsafe_load(f'!!python/object/apply:os.system ["touch {trace}"]')
    assert trace.exists()
