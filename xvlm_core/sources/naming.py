"""What columns, keys and splits are usually called, to recognise and to suggest them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import PurePath

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

FORMATS = ("xyxy", "xywh", "cxcywh")

FOUR_SIDES: tuple[tuple[str, str], ...] = (
    ("xmin ymin xmax ymax", "xyxy"),
    ("x_min y_min x_max y_max", "xyxy"),
    ("x1 y1 x2 y2", "xyxy"),
    ("left top right bottom", "xyxy"),
    ("bbox_x1 bbox_y1 bbox_x2 bbox_y2", "xyxy"),
    ("x y width height", "xywh"),
    ("x y w h", "xywh"),
    ("xmin ymin width height", "xywh"),
    ("xmin ymin w h", "xywh"),
    ("x_min y_min width height", "xywh"),
    ("x_min y_min w h", "xywh"),
    ("x1 y1 width height", "xywh"),
    ("x1 y1 w h", "xywh"),
    ("left top width height", "xywh"),
    ("bbox_x bbox_y bbox_width bbox_height", "xywh"),
    ("bbox_x bbox_y bbox_w bbox_h", "xywh"),
    ("cx cy w h", "cxcywh"),
    ("cx cy width height", "cxcywh"),
    ("x_center y_center width height", "cxcywh"),
    ("center_x center_y width height", "cxcywh"),
)
"""Usual names of the four numbers of a box, and what they mean; those with both corners first, so
that ``width`` and ``height`` beside them are the picture's."""

PICTURE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def usual_split(name: str) -> str | None:
    """``train``, ``val`` or ``test`` for what is usually called so ("Training", "dev"), or None."""
    return _SPLITS.get(name.strip().lower())


def split_name(name: str) -> str:
    """A split as stores call it; names other than the usual ones are kept as they are."""
    return usual_split(name) or name


def is_picture_name(text: str) -> bool:
    """Whether it ends as the name of a picture does."""
    return PurePath(text.strip()).suffix.lower() in PICTURE_SUFFIXES


def four_sides(there: Iterable[str]) -> tuple[tuple[str, ...], str] | None:
    """The four names that are there and usually are a box, and its format."""
    names = list(there)
    spelt = [plain(name) for name in names]
    for usual, box_format in FOUR_SIDES:
        four = usual.split()
        if all(spelt.count(name) == 1 for name in four):
            return tuple(names[spelt.index(name)] for name in four), box_format
    return None


def format_of(names: Iterable[str]) -> str | None:
    """What the numbers of a box are by its one name (``box_xywh``) or four; None: not said."""
    spelt = [plain(name) for name in names]
    for usual, box_format in FOUR_SIDES:
        if spelt == usual.split():
            return box_format
    last = spelt[0].rsplit("_", 1)[-1] if len(spelt) == 1 else ""
    return last if last in FORMATS else None


def is_doubtful_box(names: Iterable[str]) -> bool:
    """Whether data of that one name come in several formats: ``bbox`` is xywh in COCO's habit."""
    spelt = [plain(name) for name in names]
    return len(spelt) == 1 and spelt[0].rsplit(".", 1)[-1] in ("bbox", "bounding_box")


SAY_FORMAT = "--box-format xywh (left, top, width, height, as COCO has it) or --box-format xyxy"
"""What to type where the format of a box is not said by its name."""

SAVE_AS_UTF_8 = "save it as UTF-8 (e.g. iconv -f cp1252 -t UTF-8 FILE > NEW)"


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
