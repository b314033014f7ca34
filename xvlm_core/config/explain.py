"""What pydantic found wrong with a recipe, in terms of keys, types, defaults and near names."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from xvlm_core.config.schema import Recipe
from xvlm_core.models.sizes import ModelConfig

_YAML_TEXT_NUMBER = re.compile(r"([+-]?\d+)(\.\d*)?[eE]([+-]?)(\d+)")
SECTION = "a section"
_NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false"}
_SIGNS: dict[type, tuple[str, str]] = {
    Gt: (">", "gt"),
    Ge: (">=", "ge"),
    Lt: ("<", "lt"),
    Le: ("<=", "le"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that does not hold: the dotted key, one line about it, what to type instead."""

    key: str
    text: str
    try_: str | None = None


@dataclass(frozen=True)
class KeyInfo:
    """What the schema says about a dotted key."""

    key: str
    type: str
    default: str | None
    about: str

    @property
    def is_section(self) -> bool:
        """Whether keys stand below it."""
        return self.type.startswith(SECTION)

    def __str__(self) -> str:
        default = "needed" if self.default is None else f"default {self.default}"
        return f"{self.key} ({self.type}, {default})" if not self.is_section else self.key


def schema_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[KeyInfo]:
    """Every key of the schema, sections before what is in them."""
    for name, field in model.model_fields.items():
        key = f"{prefix}.{name}" if prefix else name
        yield KeyInfo(key, _field_type(field), _default(field), field.description or "")
        section = _section(field.annotation)
        if section is not None:
            yield from schema_keys(section, key)
    if model is Recipe:
        yield from schema_keys(ModelConfig, "model.overrides")


def explain(error: ValidationError, below: str = "") -> list[Finding]:
    """One finding for each error of a validation.

    Args:
        error: what pydantic raised for a Recipe, or for a ModelConfig.
        below: dotted key that the validated object stands for (``model.overrides``).
    """
    known = {info.key: info for info in schema_keys()}
    findings = [_finding(details, below, known) for details in error.errors()]
    return list({finding.text: finding for finding in findings}.values())


def _finding(details: ErrorDetails, below: str, known: dict[str, KeyInfo]) -> Finding:
    names = [part for part in details["loc"] if isinstance(part, str)]
    key = ".".join(([below] if below else []) + names)
    shown = key + "".join(f"[{part}]" for part in details["loc"] if isinstance(part, int))
    info = known.get(key)
    value = details["input"]
    if details["type"] == "extra_forbidden":
        near = _nearest(key, known)
        if near and near.is_section:
            return Finding(key, f"{shown}: unknown key; nearest: the section {near.key}")
        hint = f"nearest: {near}" if near else "no key like it"
        return Finding(
            key, f"{shown}: unknown key; {hint}", f"{near.key}={_example(near)}" if near else None
        )
    if details["type"] == "missing":
        expected = f", expected {info.type}" if info else ""
        return Finding(key, f"{shown}: missing{expected}")
    if details["type"] == "value_error":
        message = details["msg"].removeprefix("Value error, ")
        if key == "model.overrides.vision" and message.startswith("image_size"):
            return Finding("model.image_size", f"model.{message}")
        return Finding(key, f"{shown}: {message}" if shown else message)
    found = _found(value)
    number = _YAML_TEXT_NUMBER.fullmatch(value) if isinstance(value, str) else None
    if number and info and "number" in info.type:
        good = _yaml_number(number)
        return Finding(
            key,
            f"{shown}: found the text {value!r}, expected {info.type}; YAML reads {value} as text, "
            f"write {good}",
            f"{key}={good}",
        )
    if info is None:
        return Finding(key, f"{shown}: found {found}, {details['msg'].lower()}")
    default = f", default {info.default}" if info.default else ""
    return Finding(key, f"{shown}: found {found}, expected {info.type}{default}")


def _nearest(key: str, known: dict[str, KeyInfo]) -> KeyInfo | None:
    section, _, last = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    found = difflib.get_close_matches(last, siblings, n=1, cutoff=0.6)
    if found:
        return known[siblings[found[0]]]
    whole = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if whole:
        return known[whole[0]]
    same_name = [k for k in known if k.rpartition(".")[2] == last]
    if not same_name:
        lasts = {k.rpartition(".")[2]: k for k in reversed(known)}
        same_name = [lasts[n] for n in difflib.get_close_matches(last, lasts, n=1, cutoff=0.7)]
    if not same_name and siblings:
        return None
    return known[same_name[0]] if same_name else None


def _example(info: KeyInfo) -> str:
    return info.default if info.default is not None else "..."


def _yaml_number(match: re.Match[str]) -> str:
    mantissa, fraction, sign, exponent = match.groups()
    fraction = fraction if fraction and fraction != "." else ".0"
    return f"{mantissa}{fraction}e{sign or '+'}{exponent}"


def _found(value: object) -> str:
    if isinstance(value, dict):
        return "a section"
    text = json.dumps(value, default=str, ensure_ascii=False)
    kind = {str: "text ", bool: "", list: "the list "}.get(type(value), "")
    return kind + (text if len(text) <= 60 else text[:57] + "...")


def _section(annotation: Any) -> type[BaseModel] | None:
    for option in (annotation, *get_args(annotation)):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _field_type(field: FieldInfo) -> str:
    return _type(field.annotation, tuple(field.metadata))


def _type(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = tuple(item for extra in args[1:] for item in getattr(extra, "metadata", [extra]))
        return _type(args[0], inner + metadata)
    if origin in (Union, UnionType):
        options = [_type(arg, metadata) for arg in args if arg is not NoneType]
        return " or ".join(options + (["null"] if NoneType in args else []))
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            least = next((m.min_length for m in metadata if isinstance(m, MinLen)), 0)
            return f"list of {_type(args[0])}" + (f", at least {least}" if least else "")
        return "list [" + ", ".join(_type(arg) for arg in args) + "]"
    if _section(annotation) is not None or origin is dict:
        return SECTION
    signs = []
    for item in metadata:
        for kind, (sign, attribute) in _SIGNS.items():
            if isinstance(item, kind):
                signs.append(f"{sign} {getattr(item, attribute):g}")
    return " ".join([_NAMES.get(annotation, str(annotation)), " and ".join(signs)]).strip()


def _default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel | dict):
        return ""
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, float):
        return _yaml_float(value)
    return "null" if value is None else json.dumps(value).strip('"') if value != "" else '""'


def _yaml_float(value: float) -> str:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return text
