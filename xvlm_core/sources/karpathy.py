"""Captions in the splits of Karpathy: ``dataset_coco.json``, ``dataset_flickr30k.json``.

Captions are the raw ones. COCO's pictures may be named as in 2014
(``val2014/COCO_val2014_000000391895.jpg``), which is how the file names them, or as in 2017
(``val2017/000000391895.jpg``), and may lie in one folder; Flickr30K's lie in one folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError
from xvlm_core.sources.base import Option, Plan, Source
from xvlm_core.sources.coco_layout import is_id
from xvlm_core.sources.drafts import Draft, Event, Lost, Said
from xvlm_core.sources.folders import LOOKED_AT, asked_folders, first_that_fits
from xvlm_core.sources.identity import same_as
from xvlm_core.sources.strict_json import iter_members

_FILES = ("dataset_coco.json", "dataset_flickr30k.json", "dataset_flickr8k.json")
_ANNOTATION_FOLDERS = ("", "annotations/", "karpathy/", "caption_datasets/")
_PICTURE_FOLDERS = (
    "",
    "images/",
    "flickr30k-images/",
    "flickr30k_images/",
    "Flicker8k_Dataset/",
    "Flickr8k_Dataset/",
)


@dataclass(frozen=True)
class _Naming:
    """How pictures are named under the image root.

    Attributes:
        root: the image root.
        folder: of all pictures, from the image root; ends in a slash or is empty.
        style: "filepath/filename", "filename", "2017" or "2017 flat".
    """

    root: Path
    folder: str
    style: str

    def path(self, entry: dict[str, Any]) -> str:
        """Of a picture, from the image root."""
        name: str = entry["filename"]
        if self.style == "filepath/filename" and isinstance(entry.get("filepath"), str):
            name = f"{entry['filepath']}/{name}"
        elif self.style.startswith("2017") and is_id(entry.get("cocoid")):
            name = f"{entry['cocoid']:012d}.jpg"
            if self.style == "2017":  # another split of the pictures than that of 2014
                in_val = (self.root / self.folder / "val2017" / name).is_file()
                name = f"{'val' if in_val else 'train'}2017/{name}"
        return self.folder + name


def plan(options: dict[str, Any]) -> Plan:
    """Find the split file.

    Raises:
        UsageError: neither ``root`` nor ``annotations`` and ``images`` are given.
        DataError: there is no such folder, or none or several split files in it.
    """
    root, images = asked_folders(
        options,
        "the split file and the pictures are",
        usage="xvlm prepare-data karpathy --annotations dataset_coco.json --images FOLDER",
    )
    path: Path | None = options["annotations"]
    if path is None:
        assert root is not None
        path = _split_file(root)
    return Plan(_events(path, images, options["restval"]), images, (path,))


def _split_file(root: Path) -> Path:
    found = [root / f"{folder}{name}" for folder in _ANNOTATION_FOLDERS for name in _FILES]
    found = [path for path in found if path.is_file()]
    if not found:
        raise DataError(
            f"no {', '.join(_FILES[:2])} in {root}", try_="--annotations FILE, and --images FOLDER"
        )
    if len(found) > 1:
        raise DataError(
            f"there are {len(found)} split files in {root}: "
            f"{', '.join(path.name for path in found)}",
            try_=f"--annotations {found[0]}, and the others into stores of their own",
        )
    return found[0]


def _events(path: Path, root: Path, restval: str) -> Iterator[Event]:
    members = iter_members(path, ("images",), without=frozenset({"tokens", "sentids"}))
    entries = (entry for _, entry in members)
    first = list(islice(entries, LOOKED_AT))
    if not first:
        raise DataError(
            f"{path} has no images: it is no split file of Karpathy",
            try_="--annotations dataset_coco.json",
        )
    naming = _naming(path, root, [entry for entry in first if _problem(entry) is None])
    number = 0
    for batch in (first, entries):
        for entry in batch:
            yield _event(path, number, entry, naming, restval)
            number += 1


def _naming(path: Path, root: Path, first: list[dict[str, Any]]) -> _Naming:
    if not first:
        raise DataError(
            f"{path} is no split file of Karpathy: its images have no filename, split and "
            "sentences",
            try_="--annotations dataset_coco.json",
        )
    styles = ["filename"]
    if "filepath" in first[0]:
        styles = ["filepath/filename", "2017", "filename", "2017 flat"]
    namings = [_Naming(root, folder, style) for folder in _PICTURE_FOLDERS for style in styles]
    found = first_that_fits(root, first, namings)
    if found is not None:
        return found
    wanted = dict.fromkeys(naming.path(first[0]) for naming in namings if naming.folder == "")
    raise DataError(
        f"none of the first {len(first)} pictures of {path.name} is in {root}: "
        f"no {', no '.join(wanted)}",
        try_="--images FOLDER of the pictures",
    )


def _problem(entry: object) -> str | None:
    """Why a picture cannot be used."""
    if not isinstance(entry, dict):
        return "not an object"
    if not isinstance(entry.get("filename"), str):
        return "no image"
    if not isinstance(entry.get("sentences"), list):
        return "no text"
    return None if isinstance(entry.get("split"), str) else "no split"


def _event(path: Path, number: int, entry: Any, naming: _Naming, restval: str) -> Event:
    reason = _problem(entry)
    if reason is not None:
        return Lost("picture", f"{path.name}: images[{number}]", reason, entry)
    coco = entry.get("cocoid")
    stem = entry["filename"].rsplit(".", 1)[0]
    # A picture of Flickr30K or Flickr8K is named by its photo id; the latter adds "_SECRET".
    photo = None if "filepath" in entry else stem.split("_", 1)[0]
    split = entry["split"]
    return Draft(
        id=str(coco) if is_id(coco) else stem,
        pictures=(naming.path(entry),),
        said=tuple(_said(sentence, number) for sentence in entry["sentences"]),
        split=restval if split == "restval" else split,
        same_as=same_as(coco=coco if is_id(coco) else None, flickr=photo),
        meta={"karpathy": split},
    )


def _said(sentence: Any, number: int) -> Said:
    if not isinstance(sentence, dict):
        return Said("caption", sentence, f"images[{number}]", problem="not an object")
    where = sentence.get("sentid")
    return Said("caption", sentence.get("raw"), str(where) if is_id(where) else f"images[{number}]")


SOURCE = Source(
    "karpathy",
    "captions of COCO or Flickr30K in the splits of Karpathy (dataset_coco.json, ...)",
    (
        Option("root", Path, "folder of the split file and of the pictures"),
        Option("annotations", Path, "split file, instead of the one found in ROOT"),
        Option("images", Path, "folder of the pictures, val2014/ ... (default: ROOT)"),
        Option(
            "restval",
            str,
            "split of the 30,504 pictures of COCO's validation that are used for training",
            "train",
            choices=("train", "restval"),
        ),
    ),
    plan,
)
