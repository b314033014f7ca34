"""Where the pictures of questions are, and how they are named, for the source ``vqa``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.identity import same_as
from xvlm_core.sources.vqa_files import VG_FOLDERS, Inputs
from xvlm_core.sources.vqa_rows import read_vg_names

_COCO_NAME = re.compile(r"(?:^|/)(?:COCO_(train2014|val2014|test2015)_)?(?P<id>\d{12})\.\w+$")
_IMAGE_DATA = "image_data.json"
_VG_NAME = re.compile(r"(?:^|/)(?P<id>\d{1,18})\.\w+$")


@dataclass(frozen=True)
class Folder:
    """Where pictures are.

    Attributes:
        root: their folder.
        prefix: its path from the image root of the store; ends in a slash or is empty.
    """

    root: Path
    prefix: str = ""

    def path(self, names: Sequence[str]) -> str:
        """From the image root: the first of the names that is there, or the first."""
        name = next((name for name in names if self.has(name)), names[0])
        return name if name.startswith("/") else self.prefix + name

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            return (self.root / name).is_file()
        except (OSError, ValueError):  # no file name: said when pictures are checked
            return False


@dataclass(frozen=True)
class Pictures:
    """Where the pictures are.

    Attributes:
        root: image root of the store.
        coco: those of COCO.
        vg: those of Visual Genome.
        vg_names: COCO id and Flickr photo id of those, where they are known.
    """

    root: Path
    coco: Folder
    vg: Folder
    vg_names: Mapping[int, tuple[object, object]]

    def names(self, vg: int | None) -> tuple[str, ...]:
        """Of a picture of Visual Genome, as ``Draft.same_as``."""
        coco, flickr = (None, None) if vg is None else self.vg_names.get(vg, (None, None))
        return same_as(vg=vg, coco=coco, flickr=flickr)


def find_pictures(options: dict[str, Any], inputs: Inputs) -> tuple[Pictures, Path | None]:
    """Where the pictures are, and the file that tells names of those of Visual Genome."""
    of_vg = inputs.lists_of_vg
    coco: Path | None = None
    if inputs.subsets or len(of_vg) < len(inputs.lists):
        coco = options["images"] or options["root"]
        if coco is None:
            raise UsageError(
                "where the pictures are was not said",
                try_="--images FOLDER with train2014, val2014, test2015",
            )
        if not coco.is_dir():
            raise DataError(f"there is no folder {coco}", try_="--images FOLDER")
    if not (inputs.vg or of_vg):
        assert coco is not None
        return Pictures(coco, Folder(coco), Folder(coco), {}), None
    vg = _vg_folder(options, inputs)
    image_data = _image_data(vg, inputs)
    names = {} if image_data is None else read_vg_names(image_data)
    if coco is None or coco.resolve() == vg.resolve():
        return Pictures(vg, Folder(vg), Folder(vg), names), image_data
    try:
        # Without links: a path that leaves the image root through one is refused.
        root = Path(os.path.commonpath([coco.resolve(), vg.resolve()]))
    except ValueError as error:  # two drives
        raise DataError(
            f"{coco} and {vg} have no folder in common, which a store needs",
            try_="--vg-images on the same drive, or two stores",
        ) from error
    return Pictures(root, _under(root, coco), _under(root, vg), names), image_data


def _under(root: Path, folder: Path) -> Folder:
    real = folder.resolve()
    return Folder(real, "".join(f"{part}/" for part in real.relative_to(root).parts))


def _vg_folder(options: dict[str, Any], inputs: Inputs) -> Path:
    """The folder of the pictures of Visual Genome.

    Raises:
        DataError: it is none, or was not said and not found.
    """
    given: Path | None = options["vg_images"]
    if given is not None:
        if not given.is_dir():
            raise DataError(f"there is no folder {given}", try_="--vg-images FOLDER")
        return given
    beside = [path.parent for path in (*inputs.vg, *inputs.lists)]
    for folder in (*beside, options["images"], options["root"]):
        if folder is not None and any((folder / name).is_dir() for name in VG_FOLDERS[:3]):
            assert isinstance(folder, Path)
            return folder
    raise DataError(
        f"where the pictures of {(*inputs.vg, *inputs.lists_of_vg)[0]} are was not said",
        try_="--vg-images FOLDER with VG_100K and VG_100K_2, or leave it out: --annotations "
        "the other files",
    )


def _image_data(folder: Path, inputs: Inputs) -> Path | None:
    """The file ``image_data.json``, which tells the pictures that are in COCO too, if there."""
    folders = (folder, *(path.parent for path in inputs.vg), folder.parent)
    return next((f / _IMAGE_DATA for f in folders if (f / _IMAGE_DATA).is_file()), None)


def coco_names(id: int, subset: str) -> list[str]:
    """Paths that a picture of COCO may have, from the folder of COCO."""
    name = f"COCO_{subset}_{id:012d}.jpg"
    year = f"{id:012d}.jpg"
    folders = ("test2017", "test2015") if subset.startswith("test") else ("train2017", "val2017")
    old = [f"{subset}/{name}", f"images/{subset}/{name}", name]
    return [*old, *(f"{folder}/{year}" for folder in folders), year]


def refuse_missing(path: Path, folder: Folder, wanted: Iterable[Sequence[str]], flag: str) -> None:
    """If none of the first pictures of a file is there, the folder is wrong."""
    first = list({names[0]: names for names in wanted}.values())
    if not first or any(folder.has(name) for names in first for name in names):
        return
    raise DataError(
        f"none of the first {len(first)} pictures of {path.name} is in {folder.root}: "
        f"no {', no '.join(first[0][:4])}",
        try_=f"{flag} FOLDER of the pictures, or leave the file out: --annotations the others",
    )


def vg_names(id: int) -> list[str]:
    """Paths that a picture of Visual Genome may have, from the folder of Visual Genome."""
    return [f"{folder}/{id}.jpg" if folder else f"{id}.jpg" for folder in VG_FOLDERS]


def listed_names(image: str, *, of_vg: bool) -> list[str]:
    """Paths that a picture of a list may have: as told, or as COCO or Visual Genome name it."""
    id = id_of(image, of_vg=of_vg)
    if id is None:
        return [image]
    if of_vg:
        return [image, *vg_names(id)]
    match = _COCO_NAME.search(image)
    return [image, *coco_names(id, (match and match[1]) or "train2014")]


def id_of(image: str, *, of_vg: bool) -> int | None:
    """The id that a path tells: of Visual Genome, or of COCO."""
    match = (_VG_NAME if of_vg else _COCO_NAME).search(image)
    return int(match["id"]) if match else None
