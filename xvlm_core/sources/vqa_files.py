"""Which files of a folder have questions, answers and pictures, for the source ``vqa``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.vqa_rows import Listed, kind_of, read_list, subset_of

FIRST = 50
"""Pictures of a file of which one must be there."""

_FOLDERS = ("", "annotations", "questions", "Annotations", "Questions", "data", "vqa")
_QUESTIONS = "*OpenEnded_mscoco_*_questions.json"
_ANNOTATIONS = "*mscoco_*_annotations.json"
_LISTS = ("vqa_train.json", "vqa_val.json", "vqa_test.json", "vg_qa.json")
_VG_LIST = "vg_qa.json"
VG_FOLDERS = ("VG_100K", "VG_100K_2", "image", "images/VG_100K", "images/VG_100K_2", "images", "")


@dataclass
class Subset:
    """Files of VQA about the same pictures: those of "train2014", for example."""

    questions: list[Path] = field(default_factory=list)
    annotations: list[Path] = field(default_factory=list)


@dataclass
class Inputs:
    """What is read.

    Attributes:
        subsets: of VQA, by name.
        lists: of X-VLM.
        vg: of Visual Genome.
    """

    subsets: dict[str, Subset] = field(default_factory=dict)
    lists: list[Path] = field(default_factory=list)
    vg: list[Path] = field(default_factory=list)

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        pairs = self.subsets.values()
        return tuple(
            path
            for files in (*((*s.questions, *s.annotations) for s in pairs), self.lists, self.vg)
            for path in files
        )

    @property
    def lists_of_vg(self) -> list[Path]:
        """Lists whose first questions are about pictures of Visual Genome."""
        return [
            path
            for path in self.lists
            if any(m.of_vg for m in islice(read_list(path), FIRST) if isinstance(m, Listed))
        ]


def find_inputs(options: dict[str, Any]) -> Inputs:
    """The files that were named, or those found in the folder.

    Raises:
        UsageError: neither a folder nor files were named.
        DataError: there is no such folder or file, nothing in it, a file of another form, or
            questions without the file of their answers.
    """
    root: Path | None = options["root"]
    if root is not None and not root.is_dir():
        raise DataError(f"there is no folder {root}", try_="--root FOLDER of VQA")
    paths: list[Path] = list(options["annotations"])
    if not paths and root is not None:
        paths = _in_folder(root, optional=options["vg"] is not None)
    if options["vg"] is not None:
        paths = [path for path in paths if path.name != _VG_LIST] + [options["vg"]]
    if not paths:
        raise UsageError(
            "where the questions are was not said",
            try_="xvlm prepare-data vqa --root FOLDER, or --annotations FILE ... --images FOLDER",
        )
    inputs = Inputs()
    for path in dict.fromkeys(paths):
        kind = kind_of(path)
        if kind == "list":
            inputs.lists.append(path)
        elif kind == "vg":
            inputs.vg.append(path)
        else:
            subset = inputs.subsets.setdefault(subset_of(path), Subset())
            (subset.questions if kind == "questions" else subset.annotations).append(path)
    # In any order they were named: training, validation, test.
    inputs.subsets = dict(sorted(inputs.subsets.items(), key=lambda s: (is_hidden(s[0]), s[0])))
    for name, subset in inputs.subsets.items():
        _complete(name, subset, root)
    return inputs


def _in_folder(root: Path, *, optional: bool) -> list[Path]:
    found = {
        pattern: [p for f in _FOLDERS for p in sorted((root / f).glob(pattern)) if p.is_file()]
        for pattern in (_QUESTIONS, _ANNOTATIONS)
    }
    questions = _newest(found[_QUESTIONS])
    annotations = _newest(found[_ANNOTATIONS])
    lists = [root / f / name for f in _FOLDERS for name in _LISTS]
    lists = [path for path in lists if path.is_file()]
    if questions and lists:
        raise DataError(
            f"{root} has the questions twice: {questions[0].name}, and {lists[0].name} of X-VLM",
            try_=f"--annotations {' '.join(str(path) for path in (*questions, *annotations))}",
        )
    if not (questions or lists or optional):
        raise DataError(
            f"no {_QUESTIONS[1:]} in {root}, and no {_LISTS[0]}",
            try_="unpack v2_Questions_Train_mscoco.zip and v2_Annotations_Train_mscoco.zip there, "
            "or give --annotations FILE ...",
        )
    return _unique([*questions, *annotations, *lists])


def _newest(paths: Sequence[Path]) -> list[Path]:
    """Those of version 2, if there are any: the first version has the same questions and more."""
    return [path for path in paths if path.name.startswith("v2_")] or list(paths)


def _unique(paths: Iterable[Path]) -> list[Path]:
    """Each file once, although ``Annotations`` and ``annotations`` may be one folder."""
    return list({os.path.realpath(path): path for path in paths}.values())


def _complete(name: str, subset: Subset, root: Path | None) -> None:
    """Find the answers that belong to questions."""
    if not subset.questions:
        raise DataError(
            f"{subset.annotations[0]} has answers to questions that are in none of the files",
            try_=f"--annotations v2_OpenEnded_mscoco_{name}_questions.json "
            f"{subset.annotations[0].name}",
        )
    if subset.annotations or is_hidden(name):
        return
    path = subset.questions[0]
    folders = [path.parent, *([root / folder for folder in _FOLDERS] if root else [])]
    found = _newest([p for f in folders for p in f.glob(f"*mscoco_{name}_annotations.json")])
    if not found:
        raise DataError(
            f"the answers to {path} are missing: no *mscoco_{name}_annotations.json beside it",
            try_=f"unpack them there, or --annotations {path} ANNOTATIONS_FILE",
        )
    subset.annotations.append(found[0])


def is_hidden(subset: str) -> bool:
    """Whether the answers of a subset are not published."""
    return subset.startswith("test")
