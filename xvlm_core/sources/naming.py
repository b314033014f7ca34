"""What columns and keys are usually called, to recognise them and to suggest them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

USUAL: dict[str, tuple[str, ...]] = {
    "image": (
        *("image", "file_name", "filename", "file", "image_path", "path", "filepath", "file_path"),
        *("img", "img_path", "image_name", "image_file", "image_filename", "picture"),
    ),
    "text": (
        *("text", "caption", "phrase", "expression", "sentence", "description", "name"),
        *("label", "class", "category", "class_name", "category_name", "label_name"),
    ),
    "box": ("box", "bbox", "bounding_box", "box_xyxy", "bbox_xyxy", "box_xywh", "bbox_xywh"),
    "split": ("split", "subset"),
    "kind": ("kind",),
    "id": ("id", "ref_id", "key"),
}
"""By what is looked for, the most usual name first; small letters, ``_`` for any separator."""

LABELS = frozenset({"label", "class", "category", "class_name", "category_name", "label_name"})
"""Names of columns whose texts are names of kinds of things rather than sentences."""


def plain(name: str) -> str:
    """``File Name``, ``file-name`` and ``FILE_NAME`` are one name."""
    return "_".join(name.lower().replace("-", " ").replace("_", " ").split())


def recognised(what: str, there: Iterable[str]) -> list[str]:
    """Which of the names that are there usually mean ``what`` ("image", "text", ...)."""
    return [name for name in there if plain(name) in USUAL[what]]


def nearest(what: str, wanted: str, there: Iterable[str]) -> str | None:
    """The name that was probably meant: one spelt alike, or a usual one of that meaning."""
    names = list(there)
    by_plain = {plain(name): name for name in names}
    alike = difflib.get_close_matches(plain(wanted), by_plain, 1, 0.6)
    usual = recognised(what, names)
    return by_plain[alike[0]] if alike else (usual[0] if usual else None)
