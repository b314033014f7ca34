"""Questions about pictures: VQA v2, Visual Genome, and the lists of the released X-VLM code.

VQA: ``v2_OpenEnded_mscoco_*_questions.json`` and ``v2_mscoco_*_annotations.json``; X-VLM:
``vqa_train.json``, ``vqa_val.json``, ``vqa_test.json``, ``vg_qa.json``; Visual Genome:
``question_answers.json``. One record a picture and split. Splits: train2014 is "train", val2014
"val", test2015 "test", test-dev2015 "test-dev" (its questions are among those of "test");
Visual Genome is "train".

Answers: every distinct one, not normalised (white space is folded), with the share of the people
who gave it. So the answers of all people are there: each ``round(10 * weight)`` times, of ten
people, or of ``meta["people"][question id]`` where there were not ten. If the weights do not sum
to 1, the other people gave an answer without a word ("?"), to which no prediction is equal.
Questions whose answers are hidden have none. Those of Visual Genome have the weight 0.5, as in the
released code, and answers are in lower case without the full stop at the end, as in its list.
``meta["types"][question id]`` is [question type, answer type].

COCO's pictures may be named as in 2014 or as in 2017. If those of Visual Genome lie elsewhere, the
image root of the store is the deepest folder that has both.

A further file of the store, ``answers.json``, has the answers to choose from (``answers``): given
as a file, or built from those of the training questions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError
from xvlm_core.sources.answers import LIST_SIZE, build_answer_list, read_answer_list
from xvlm_core.sources.base import Option, Plan, Source
from xvlm_core.sources.drafts import Draft, Event, Lost
from xvlm_core.sources.identity import same_as
from xvlm_core.sources.vqa_files import FIRST, Subset, find_inputs, is_hidden
from xvlm_core.sources.vqa_pictures import (
    Folder,
    Pictures,
    coco_names,
    find_pictures,
    id_of,
    listed_names,
    refuse_missing,
    vg_names,
)
from xvlm_core.sources.vqa_rows import (
    PEOPLE,
    Listed,
    Row,
    first_pictures,
    read_list,
    read_questions,
    read_vg,
)

_PICTURES_OF = {"test-dev2015": "test2015"}
_LIST_SPLIT = re.compile(r"(?:^|[_.-])(train|val|test-dev|test)$")


def plan(options: dict[str, Any]) -> Plan:
    """Find questions, answers and pictures.

    Raises:
        UsageError: where they are was not said.
        DataError: a folder or file is missing or of another form, questions have no file of
            answers, or none of the first pictures of a file is there.
    """
    inputs = find_inputs(options)
    pictures, image_data = find_pictures(options, inputs)
    given = None if options["answer_list"] is None else read_answer_list(options["answer_list"])
    splits = ("train", "val") if options["answers_from"] == "train+val" else ("train",)
    records = _Records(options["split"])
    readers: list[_Vqa | _List | _Vg] = [
        *(_Vqa(name, subset, pictures.coco) for name, subset in inputs.subsets.items()),
        *(_List(path, pictures) for path in inputs.lists),
        *(_Vg(path, pictures) for path in inputs.vg),
    ]
    for reader in readers:
        reader.check()

    def files() -> dict[str, bytes]:
        answers = given
        counts = records.count(splits)
        if answers is None and counts:
            size, least = options["answer_list_size"], options["answer_min_count"]
            answers = build_answer_list(counts, size, least)
        train = records.count(("train",))
        return {} if answers is None else {"answers.json": answers.to_json(train)}

    paths = (*inputs.paths, image_data, options["answer_list"])
    return Plan(
        (event for reader in readers for event in reader.events(records)),
        pictures.root,
        tuple(path for path in paths if path is not None),
        files=files,
    )


@dataclass
class _Records:
    """Rows to drafts; remembers what was there and which answers were given.

    Attributes:
        split: of all records; None: that of their file.
        given: how often each answer of VQA was given, by split of the file.
    """

    split: str | None
    given: dict[str, Counter[str]] = field(default_factory=dict)
    _pictures: set[str] = field(default_factory=set)
    _asked: dict[str, set[str]] = field(default_factory=dict)

    def events(
        self, id: str, path: str, rows: Iterable[Row], split: str, names: tuple[str, ...]
    ) -> Iterator[Event]:
        """The draft of a picture, after what was changed about it."""
        if id in self._pictures:
            for row in rows:
                yield Lost("question", row.id, "repeated picture", id)
            return
        self._pictures.add(id)
        said, types, people = [], {}, {}
        asked = self._asked.setdefault(split, set())
        for row in rows:
            if row.id in asked:
                yield Lost("question", row.id, "repeated id", row.text)
                continue
            asked.add(row.id)
            question, repairs = row.said()
            yield from repairs
            said.append(question)
            if row.types is not None:
                types[row.id] = list(row.types)
            if row.weight == 1 and row.texts:
                self.given.setdefault(split, Counter()).update(row.texts)
                if len(row.texts) != PEOPLE:
                    people[row.id] = len(row.texts)
        meta = {key: value for key, value in (("types", types), ("people", people)) if value}
        yield Draft(id, (path,), tuple(said), split=self.split or split, same_as=names, meta=meta)

    def count(self, splits: Iterable[str]) -> Counter[str]:
        """How often each answer was given in some splits."""
        return sum((self.given.get(split, Counter()) for split in splits), Counter())


@dataclass(frozen=True)
class _Vqa:
    """One subset of VQA."""

    name: str
    files: Subset
    folder: Folder

    @property
    def of(self) -> str:
        """The subset of COCO that has the pictures."""
        return _PICTURES_OF.get(self.name, self.name)

    def check(self) -> None:
        """Refuse files without questions, or without pictures."""
        for path in self.files.questions:
            first = list(islice(first_pictures(path), FIRST))
            if not first:
                raise DataError(f"{path} has no question with a picture")
            wanted = (coco_names(id, self.of) for id in first)
            refuse_missing(path, self.folder, wanted, "--images")

    def events(self, records: _Records) -> Iterator[Event]:
        """What it says."""
        split = self.name.rstrip("0123456789")
        hidden = is_hidden(self.name)
        for found in read_questions(self.files.questions, self.files.annotations, hidden=hidden):
            if isinstance(found, Lost):
                yield found
                continue
            id, rows = found
            path = self.folder.path(coco_names(id, self.of))
            yield from records.events(f"{split}/{id}", path, rows, split, same_as(coco=id))


@dataclass(frozen=True)
class _List:
    """One list of X-VLM."""

    path: Path
    pictures: Pictures

    def check(self) -> None:
        """Refuse a list without pictures."""
        first = [m for m in islice(read_list(self.path), FIRST) if isinstance(m, Listed)]
        for of_vg, flag in ((False, "--images"), (True, "--vg-images")):
            listed = [m for m in first if m.of_vg == of_vg]
            folder = self.pictures.vg if of_vg else self.pictures.coco
            wanted = (listed_names(m.image, of_vg=of_vg) for m in listed)
            refuse_missing(self.path, folder, wanted, flag)

    def events(self, records: _Records) -> Iterator[Event]:
        """What it says."""
        match = _LIST_SPLIT.search(self.path.stem)
        split = match[1] if match else "train"
        hidden = is_hidden(split)
        by_picture: dict[tuple[bool, str], list[Row]] = {}
        for found in read_list(self.path, hidden=hidden):
            if isinstance(found, Lost):
                yield found
            else:
                by_picture.setdefault((found.of_vg, found.image), []).append(found.row)
        for (of_vg, image), rows in by_picture.items():
            folder = self.pictures.vg if of_vg else self.pictures.coco
            path = folder.path(listed_names(image, of_vg=of_vg))
            id = id_of(image, of_vg=of_vg)
            name = f"{'vg' if of_vg else split}/{image if id is None else id}"
            names = self.pictures.names(id) if of_vg else same_as(coco=id)
            yield from records.events(name, path, rows, split, names)


@dataclass(frozen=True)
class _Vg:
    """One file of Visual Genome."""

    path: Path
    pictures: Pictures

    def check(self) -> None:
        """Refuse a file without pictures."""
        first = islice(read_vg(self.path), FIRST)
        wanted = (vg_names(found[0]) for found in first if isinstance(found, tuple))
        refuse_missing(self.path, self.pictures.vg, wanted, "--vg-images")

    def events(self, records: _Records) -> Iterator[Event]:
        """What it says."""
        for found in read_vg(self.path):
            if isinstance(found, Lost):
                yield found
                continue
            id, rows = found
            path = self.pictures.vg.path(vg_names(id))
            yield from records.events(f"vg/{id}", path, rows, "train", self.pictures.names(id))


SOURCE = Source(
    "vqa",
    "questions of VQA v2 and of Visual Genome, or the VQA lists of the released X-VLM code",
    (
        Option("root", Path, "folder of the questions, annotations and pictures"),
        Option(
            "annotations",
            Path,
            "file of questions or of annotations, or list of X-VLM, instead of those found in ROOT",
            multiple=True,
        ),
        Option("images", Path, "folder of COCO's pictures: train2014/ ... (default: ROOT)"),
        Option("vg", Path, "question_answers.json of Visual Genome, or vg_qa.json of X-VLM"),
        Option("vg_images", Path, "folder of its pictures: VG_100K/, VG_100K_2/"),
        Option(
            "split",
            str,
            "split of all records (default: by a file's name, such as vqa_val.json, else train)",
        ),
        Option("answer_list", Path, "answers to choose from, a JSON list or one a line"),
        Option(
            "answers_from",
            str,
            "whose answers the list is built from, if none is given",
            "train",
            choices=("train", "train+val"),
        ),
        Option("answer_list_size", int, "longest list that is built", LIST_SIZE, minimum=2),
        Option("answer_min_count", int, "leave out what fewer people answered", 1, minimum=1),
    ),
    plan,
)
