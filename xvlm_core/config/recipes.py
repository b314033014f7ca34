"""The recipes that ship with xvlm: their names and where they lie. Standard library only.

In the wheel they are ``xvlm_core/recipes``; in a checkout they are ``recipes/`` beside the package.
"""

from __future__ import annotations

import difflib
import importlib.resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from xvlm_core.errors import ConfigError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

SUFFIXES = (".yaml", ".yml")


def recipes_root() -> Traversable:
    """The folder of recipes: package data, or the folder of the repository."""
    package = importlib.resources.files("xvlm_core")
    packaged = package / "recipes"
    if packaged.is_dir():
        return packaged
    return Path(str(package)).parent / "recipes"


def kind_of_task(task: str) -> Literal["pretrain", "finetune"]:
    """The verb that trains a task, and the folder that its recipes are in."""
    return "pretrain" if task == "pretrain" or task.endswith("_pretrain") else "finetune"


def recipe_names(kind: str | None = None) -> list[str]:
    """Full names, e.g. ``pretrain/16m``, sorted; of one folder (``pretrain``) if asked."""
    root = recipes_root()
    if not root.is_dir():
        return []
    names = [
        f"{folder.name}/{entry.name.removesuffix('.yaml')}"
        for folder in root.iterdir()
        if folder.is_dir() and (kind is None or folder.name == kind)
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    ]
    return sorted(names)


def looks_like_path(name: str) -> bool:
    """Whether a recipe was asked for by file (a YAML name, or a path that begins like one)."""
    return name.endswith(SUFFIXES) or name.startswith(("/", "./", "../", "~"))


def find_recipe(name: str, kind: str | None = None) -> tuple[str, Traversable]:
    """The recipe that ``name`` means: its full name and its file.

    ``name`` is a path to a YAML file, a full name (``finetune/refcoco+``) or a short one
    (``refcoco+``, ``16m``). ``kind`` (a folder) decides between short names that are in both.

    Raises:
        ConfigError: no such recipe or file, or a short name that two folders have.
    """
    if looks_like_path(name):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(
                f"no recipe file {name}",
                where=str(path.absolute()),
                try_="xvlm ls recipes",
            )
        return path.stem, path
    names = recipe_names()
    if not names:
        raise ConfigError(
            "no recipes are installed", where=str(recipes_root()), try_="pip install --force xvlm"
        )
    if name in names:
        matches = [name]
    else:
        matches = [full for full in names if full.partition("/")[2] == name]
        if kind is not None and f"{kind}/{name}" in matches:
            matches = [f"{kind}/{name}"]
    if len(matches) == 1:
        folder, _, stem = matches[0].partition("/")
        return matches[0], recipes_root() / folder / f"{stem}.yaml"
    if matches:
        raise ConfigError(
            f"recipe {name!r} could be {' or '.join(matches)}",
            try_=f"give the full name: {matches[0]}",
        )
    near = nearest_names(name, kind)
    raise ConfigError(
        f"unknown recipe {name!r}",
        details=[f"near: {', '.join(near)}"] if near else [f"known: {', '.join(names)}"],
        try_=f"{near[0]}, or a path to a YAML file" if near else "xvlm ls recipes",
    )


def nearest_names(name: str, kind: str | None = None) -> list[str]:
    """Up to three known names close to a wrong one, those of ``kind`` first."""
    names = recipe_names(kind) or recipe_names()
    short = {full.partition("/")[2]: full for full in reversed(recipe_names())}
    short.update({full.partition("/")[2]: full for full in names})
    candidates = {**{full: full for full in names}, **short}
    folded = {key.lower(): value for key, value in candidates.items()}
    found = difflib.get_close_matches(name.lower(), folded, n=6, cutoff=0.5)
    return list(dict.fromkeys(folded[key] for key in found))[:3]
