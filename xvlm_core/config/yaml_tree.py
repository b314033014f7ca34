"""YAML read safely: plain values only, no key twice, no alias bomb, each key with its line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from xvlm_core.errors import ConfigError

MAX_CHARACTERS = 1_000_000
MAX_NODES = 20_000
MAX_DEPTH = 32

_MERGE = "tag:yaml.org,2002:merge"

Tree = dict[str, Any]


@dataclass(frozen=True)
class YamlTree:
    """A mapping and the line (from 1) of each dotted key."""

    tree: Tree
    lines: Mapping[str, int]


class _Walk:
    """Checks a node graph before anything is built from it, and notes the lines of keys."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.lines: dict[str, int] = {}
        self.problems: list[str] = []
        self.nodes = 0

    def visit(self, node: yaml.Node, path: str, depth: int) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            raise ConfigError(
                "the YAML text grows without end (aliases or nesting)",
                where=f"{self.where}:{node.start_mark.line + 1}",
                try_="write the values out, without & and *",
            )
        if isinstance(node, yaml.SequenceNode):
            for position, item in enumerate(node.value):
                self.visit(item, f"{path}[{position}]", depth + 1)
        elif isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key_node, value_node in node.value:
                line = key_node.start_mark.line + 1
                if key_node.tag == _MERGE:
                    self.visit(value_node, path, depth + 1)
                    continue
                if not isinstance(key_node, yaml.ScalarNode):
                    self.problems.append(f"line {line}: a key must be plain text")
                    continue
                key = f"{path}.{key_node.value}" if path else str(key_node.value)
                if key_node.value in seen:
                    self.problems.append(
                        f"line {line}: key {key} is there twice (first in line "
                        f"{seen[key_node.value]})"
                    )
                seen[key_node.value] = line
                self.lines.setdefault(key, line)
                self.visit(value_node, key, depth + 1)


def _load(text: str, where: str) -> tuple[Any, Mapping[str, int]]:
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(
            f"{len(text):,} characters of YAML; at most {MAX_CHARACTERS:,} are read", where=where
        )
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        walk = _Walk(where)
        walk.visit(node, "", 0)
        if walk.problems:
            raise ConfigError(
                "the YAML text contradicts itself",
                details=walk.problems,
                where=where,
                try_="keep one of the two lines",
            )
        return _construct(loader, node), walk.lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark and "\n" in text.strip() else ""
        raise ConfigError(
            f"not readable as YAML: {error.problem or error.context}",
            where=f"{where}{line}",
            try_="check indentation, colons and quotes in that line",
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"not readable as YAML: {str(error).splitlines()[0]}", where=where
        ) from error
    finally:
        if loader is not None:
            loader.dispose()


def _construct(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    try:
        return loader.construct_document(node)
    except (LookupError, AttributeError, TypeError, OverflowError) as error:
        # PyYAML on a tag that its text does not fit: !!bool foo, !!int "", !!timestamp x
        raise ValueError("a value does not fit its tag (!!...)") from error


def load_mapping(text: str, where: str) -> YamlTree:
    """Read a YAML mapping.

    Raises:
        ConfigError: not YAML, not a mapping, a key twice, an alias bomb, or a tag that asks for
            more than plain values; ``where`` and the line are named.
    """
    value, lines = _load(text, where)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ConfigError(
            f"a mapping of keys to values is needed, found {type(value).__name__}", where=where
        )
    check_values(value, where)
    return YamlTree(value, lines)


def load_value(text: str, where: str) -> Any:
    """Read one YAML value (scalar, list or mapping), as after ``key=``."""
    value, _ = _load(text, where)
    check_values({"value": value}, where)
    return value


def check_values(tree: Mapping[Any, Any], where: str) -> None:
    """Refuse keys that are not text and numbers that are not finite."""
    problems = [f"{key!r}: a key must be text, quote it" for key in _odd_keys(tree)]
    problems = problems or [
        f"{key}: {problem}" for key, value in leaves(tree) if (problem := _value_problem(value))
    ]
    if problems:
        raise ConfigError("values that no recipe can hold", details=problems, where=where)


def _value_problem(value: object) -> str | None:
    if isinstance(value, list | dict):
        items = value.values() if isinstance(value, dict) else value
        return next((problem for item in items if (problem := _value_problem(item))), None)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    if not isinstance(value, str | int | float | bool | None):
        return f"{value!r} is read as {type(value).__name__}; quote it if text is meant"
    if isinstance(value, str) and not _is_unicode(value):
        return f"{value!r} is no Unicode text, write the characters themselves"
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a pair of escapes: "\ud83d"
        return False
    return True


def _odd_keys(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or not _is_unicode(key):
                yield key
            yield from _odd_keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from _odd_keys(item)


def leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; lists and empty mappings are values."""
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, dict) and value:
            yield from leaves(value, path)
        else:
            yield path, value
