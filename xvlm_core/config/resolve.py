"""From a recipe's name to a typed recipe: file, environment, flags and overrides, each with origin.

Precedence: override (``a.b=value``) > flag (``--seed``) > environment (``XVLM_*``) > recipe file >
schema default. The environment rule: ``XVLM_`` and the key in capitals, dots as two underscores:
``XVLM_TRAIN__DEVICE=cpu`` is ``train.device=cpu``, ``XVLM_SEED=7`` is ``seed=7``. Values are YAML.
(``XVLM_CHECKPOINT``, ``XVLM_RUNS`` and ``XVLM_DEBUG`` are no recipe values.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from xvlm_core.config.explain import Finding, explain
from xvlm_core.config.recipes import find_recipe
from xvlm_core.config.schema import Recipe
from xvlm_core.config.yaml_tree import Tree, YamlTree, leaves, load_mapping, load_value
from xvlm_core.errors import ConfigError, UsageError

Source = Literal["override", "flag", "environment", "recipe", "schema"]

ENVIRONMENT_PREFIX = "XVLM_"


@dataclass(frozen=True)
class Origin:
    """Where a value was set: the kind of place, and the place itself."""

    source: Source
    place: str = ""

    def __str__(self) -> str:
        return f"{self.source} {self.place}" if self.place else self.source


@dataclass(frozen=True)
class Resolved:
    """A recipe that holds, and the origin of each value that is not the schema's default."""

    recipe: Recipe
    origins: Mapping[str, Origin]
    name: str
    path: str

    def origin(self, key: str) -> Origin:
        """Where the value of a dotted key was set (its nearest set ancestor, else the schema)."""
        while key:
            if key in self.origins:
                return self.origins[key]
            key = key.rpartition(".")[0]
        return Origin("schema")


@dataclass(frozen=True)
class Row:
    """One line of ``--dry-run``."""

    key: str
    value: Any
    origin: str


def resolve(
    name: str,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    kind: str | None = None,
) -> Resolved:
    """Find, read, merge and validate a recipe.

    Args:
        name: a recipe name, full or short, or a path to a YAML file.
        overrides: ``a.b=value`` strings; the value is YAML.
        flags: dotted key to value, for options of the command line that were given.
        environ: the environment (``os.environ``); nothing is read from it otherwise.
        kind: the folder that a short name is looked up in first (``pretrain``).

    Raises:
        ConfigError: unknown recipe, unreadable YAML, unknown keys, wrong types or values; all
            findings are reported together.
        UsageError: an override that is not ``key=value``.
    """
    full_name, file = find_recipe(name, kind)
    place = str(file) if isinstance(file, Path) else f"{full_name}.yaml"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the recipe: {error}", where=place) from error
    merged = _Merge(load_mapping(text, place), _short(place))
    given: list[tuple[str, Any, Origin]] = []
    for key, raw in _environment(environ or {}):
        variable = ENVIRONMENT_PREFIX + key.replace(".", "__").upper()
        value = load_value(raw, f"the environment, {variable}")
        given.append((key, value, Origin("environment", variable)))
    given += [(key, value, Origin("flag")) for key, value in (flags or {}).items()]
    given += [(*parse_override(override), Origin("override")) for override in overrides]
    _begin_second_stage(merged, given)
    for key, value, origin in given:
        merged.set(key, value, origin)
    _follow_compat(merged)
    recipe = _validate(merged, full_name)
    return Resolved(recipe, merged.origins, full_name, place)


def _follow_compat(merged: _Merge) -> None:
    """``compat``, where it is given, goes for the scoring, too, unless that is told otherwise.

    "none" in a file may be a default that was written out: it leaves the choice to the model.
    """
    value, origin = merged.tree.get("compat"), merged.origins.get("compat")
    scoring = merged.tree.get("scoring") or {}
    is_free = isinstance(scoring, dict) and scoring.get("compat") is None
    if origin is None or not is_free or value not in ("none", "official"):
        return
    if value == "official" or origin.source != "recipe":
        merged.set("scoring.compat", value, origin)


def _begin_second_stage(merged: _Merge, given: Sequence[tuple[str, Any, Origin]]) -> None:
    """Where the second stage is asked for, the file's values for it replace those of the first.

    They are values of the recipe: what is given elsewhere goes before them. Once they are in
    their places none is left in ``second_stage``, so that a recipe that was written out holds.
    """
    stages = [value for key, value, _ in given if key == "captioning.stage"]
    section = merged.tree.get("captioning")
    if not stages and isinstance(section, dict):
        stages = [section.get("stage")]
    values = merged.tree.get("second_stage")
    if stages[-1:] != ["self_critical"] or not isinstance(values, dict) or not values:
        return
    for key, value in list(leaves(values)):
        merged.set(key, value, merged.origins[f"second_stage.{key}"])
    merged.set("second_stage", {}, Origin("recipe", merged.place))


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``a.b=value``; the value is YAML.

    Raises:
        UsageError: no ``=``, or no key before it.
        ConfigError: the value is not YAML.
    """
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals or not key or not all(key.split(".")):
        raise UsageError(
            f"{text!r} is not an override of the form key=value",
            try_="e.g. optim.lr=3.0e-5 or data.workers=0",
        )
    return key, load_value(raw, f"the override {text}")


def describe(resolved: Resolved) -> list[Row]:
    """Every value of the recipe with its origin, in the order of the schema."""
    values = resolved.recipe.model_dump(mode="json")
    return [Row(key, value, str(resolved.origin(key))) for key, value in leaves(values)]


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included: a run folder keeps it, ``resolve`` reads it."""
    values = recipe.model_dump(mode="json")
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if any(end in text for end in "\x85\u2028\u2029"):  # PyYAML would read plain line ends
        text = yaml.safe_dump(values, sort_keys=False)
    return text


def _environment(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Keys and values that the environment sets: known sections, and whatever has a ``__``."""
    found = []
    for variable, value in sorted(environ.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        key = variable[len(ENVIRONMENT_PREFIX) :].lower().replace("__", ".")
        if "." in key.strip(".") or key in Recipe.model_fields:
            found.append((key, value))
    return found


def _short(place: str) -> str:
    """A path as short as it can be said from here."""
    try:
        return str(Path(place).relative_to(Path.cwd()))
    except ValueError:
        parts = Path(place).parts
        return "/".join(parts[-3:]) if "recipes" in parts[-3:] else place


class _Merge:
    """The tree of values, the origin of each, and the lines of the file."""

    def __init__(self, base: YamlTree, place: str) -> None:
        self.tree: Tree = base.tree
        self.origins: dict[str, Origin] = {}
        self.problems: list[str] = []
        for key, _ in leaves(base.tree):
            line = base.lines.get(key)
            self.origins[key] = Origin("recipe", f"{place}:{line}" if line else place)
        self.place = place
        self.lines = base.lines

    def set(self, key: str, value: Any, origin: Origin) -> None:
        """Put a value at a dotted key; what was below or at it is replaced."""
        *sections, last = key.split(".")
        at = self.tree
        for depth, section in enumerate(sections):
            below = at.get(section)
            if below is None:
                below = at[section] = {}
                self._forget(".".join(sections[: depth + 1]))
            if not isinstance(below, dict):
                self.problems.append(
                    f"{key}: {'.'.join(sections[: depth + 1])} is a value, not a section ({origin})"
                )
                return
            at = below
        at[last] = value
        self._forget(key)
        if isinstance(value, dict) and value:
            for leaf, _ in leaves(value, key):
                self.origins[leaf] = origin
        else:
            self.origins[key] = origin

    def _forget(self, key: str) -> None:
        for known in [k for k in self.origins if k == key or k.startswith(f"{key}.")]:
            del self.origins[known]

    def where(self, key: str) -> str:
        """Where to look for a key that does not hold: its own place, else that of its section."""
        inside = [str(o) for k, o in self.origins.items() if k == key or k.startswith(f"{key}.")]
        if len(set(inside)) == 1:
            return inside[0].removeprefix("recipe ")
        while key:
            if key in self.lines:
                return f"{self.place}:{self.lines[key]}"
            key = key.rpartition(".")[0]
        return self.place


def _validate(merged: _Merge, name: str) -> Recipe:
    findings: list[Finding] = []
    recipe = None
    try:
        recipe = Recipe.model_validate_json(json.dumps(merged.tree))
        recipe.model.shape()
    except ValidationError as error:
        below = "" if recipe is None else "model.overrides"
        findings = explain(error, below)
    details = merged.problems + [f"{f.text} ({merged.where(f.key)})" for f in findings]
    if not details:
        assert recipe is not None
        return recipe
    count = f"{len(details)} values do" if len(details) > 1 else "a value does"
    raise ConfigError(
        f"recipe {name}: {count} not hold",
        details=details,
        where=merged.place,
        try_=next((f.try_ for f in findings if f.try_), "correct the values named above"),
    )
