"""Questions and answers as the files of VQA, of Visual Genome and of the X-VLM lists have them."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from xvlm_core.data.text import sanitize
from xvlm_core.errors import DataError
from xvlm_core.sources.answers import is_wordless
from xvlm_core.sources.coco_layout import is_id
from xvlm_core.sources.drafts import Lost, Repaired, Said
from xvlm_core.sources.strict_json import iter_array, iter_members, refuse_encoding

PEOPLE = 10
"""Who answered each question of VQA."""

VG_WEIGHT = 0.5
"""Of the one answer of a question of Visual Genome, as in the released code."""

Kind = Literal["questions", "annotations", "list", "vg"]

_HEAD = 1 << 16
_ARRAY_KEY = re.compile(r'"(questions|annotations)"\s*:\s*\[')
_SUBTYPE = re.compile(r'"data_subtype"\s*:\s*"([\w-]+)"')
_NAMED = re.compile(r"(?:^|_)([a-z-]+\d{4})_(?:questions|annotations)$")
_VG_DATASETS = ("vg", "gqa")
"""Data sets on pictures of Visual Genome."""


@dataclass(frozen=True, slots=True)
class Row:
    """A question, as found.

    Attributes:
        id: unique among the questions of a split.
        text: the question.
        answers: one text a person; empty: not told.
        weight: of all answers together.
        types: question type and answer type, if told.
        problem: why it cannot be used, if known.
    """

    id: str
    text: object
    answers: object = ()
    weight: float = 1.0
    types: tuple[str, str] | None = None
    problem: str | None = None

    def said(self) -> tuple[Said, tuple[Repaired, ...]]:
        """The question for a draft: distinct answers, each with its share of the weight.

        An answer without a word ("?") is left out, but counts where the share is taken.
        """
        answers: object = self.answers
        problem, repairs, texts = self.problem, list[Repaired](), self.texts
        if texts:
            counts: Counter[str] = Counter()
            for text, n in Counter(texts).items():
                counts[sanitize(text)] += n
            wordless = [text for text in counts if is_wordless(text)]
            share = self.weight / len(texts)
            for text in wordless:
                reason = "answer without a word left out"
                repairs.extend([Repaired("question", self.id, reason, text)] * counts.pop(text))
            answers = tuple((text, round(n * share, 6)) for text, n in counts.items())
            if wordless and not answers:
                problem, repairs = "no answer with a word", []
        return Said(
            "question", self.text, self.id, answers=answers, id=self.id, problem=problem
        ), tuple(repairs)

    @property
    def texts(self) -> tuple[str, ...]:
        """The answers of a question without a problem; none if they are malformed."""
        found = self.answers
        if self.problem is not None or not isinstance(found, tuple):
            return ()
        return found if all(isinstance(text, str) for text in found) else ()


def _told(found: object) -> object:
    """Answers as a tuple; what is malformed as it is."""
    if isinstance(found, str):
        found = [found]
    if not isinstance(found, list):
        return found
    return tuple(sys.intern(text) if isinstance(text, str) else text for text in found)


# ---------------------------------------------------------------------- which file is what


def kind_of(path: Path) -> Kind:
    """What a file has, by its first bytes.

    Raises:
        DataError: it cannot be read, or is none of the four.
    """
    head = _head(path)
    wanted = 'VQA\'s {"questions": [...]} and {"annotations": [...]}, X-VLM\'s [{"image": ...}]'
    if head.lstrip()[:1] == "[":
        member = next(iter_array(path), None)
        keys = list(member) if isinstance(member, dict) else []
        if "qas" in keys:
            return "vg"
        if {"image", "question"} <= {*keys}:
            return "list"
        raise DataError(
            f"{path} is no list of questions: its first member has not the keys image and question",
            where=f"its keys: {', '.join(map(str, keys)) or 'none'}",
            try_=f"files in these forms: {wanted}",
        )
    match = _ARRAY_KEY.search(head)
    if match is None:
        raise DataError(
            f"{path} has neither questions nor annotations", try_=f"files in these forms: {wanted}"
        )
    return "questions" if match[1] == "questions" else "annotations"


def subset_of(path: Path) -> str:
    """The ``data_subtype`` of a file of VQA, as "train2014": what it says, else by its name.

    Raises:
        DataError: neither tells.
    """
    match = _SUBTYPE.search(_head(path)) or _NAMED.search(path.stem)
    if match is None:
        raise DataError(
            f"{path} does not say what its pictures are: it has no data_subtype",
            try_="name it as VQA does: v2_OpenEnded_mscoco_train2014_questions.json, "
            "v2_mscoco_train2014_annotations.json",
        )
    return match[1]


def _head(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(_HEAD)
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}", try_="--annotations FILE"
        ) from error
    refuse_encoding(path, data[:4])
    if not data.strip():
        raise DataError(f"{path} is an empty file")
    return data.decode("utf-8-sig", errors="replace")


# ---------------------------------------------------------------------- VQA


@dataclass(frozen=True, slots=True)
class _Annotation:
    image: object
    answers: object
    types: tuple[str, str]


def first_pictures(path: Path) -> Iterator[int]:
    """COCO ids of the questions of a file of VQA, in file order."""
    for _, member in iter_members(path, ("questions",)):
        if isinstance(member, dict) and is_id(member.get("image_id")):
            yield member["image_id"]


def read_questions(
    questions: Iterable[Path], annotations: Iterable[Path], *, hidden: bool
) -> Iterator[Lost | tuple[int, list[Row]]]:
    """The questions of one subset of VQA, with their answers, by picture.

    Args:
        questions: files of the subset.
        annotations: the same.
        hidden: questions without annotation are as they should be.

    Yields:
        What cannot be attached, then (COCO id, rows) in the order of the first questions.
    """
    known: dict[int, _Annotation] = {}
    for path in annotations:
        for number, (_, member) in enumerate(iter_members(path, ("annotations",))):
            id = member.get("question_id") if isinstance(member, dict) else None
            if not is_id(id) or id in known:
                reason = "repeated id" if is_id(id) else _no_object(member, "no id")
                yield Lost("question", f"{path.name}: annotations[{number}]", reason, id)
                continue
            known[id] = _annotation(member)
    by_picture: dict[int, list[Row]] = {}
    asked: set[int] = set()
    for path in questions:
        for number, (_, member) in enumerate(iter_members(path, ("questions",))):
            where = f"{path.name}: questions[{number}]"
            id = member.get("question_id") if isinstance(member, dict) else None
            image = member.get("image_id") if isinstance(member, dict) else None
            if not is_id(id) or not is_id(image) or image < 0:
                reason = _no_object(member, "no image" if is_id(id) else "no id")
                yield Lost("question", where, reason, member)
                continue
            row = _row(id, image, member.get("question"), known.get(id), hidden=hidden)
            by_picture.setdefault(image, []).append(row)
            asked.add(id)
    for id in known:
        if id not in asked:
            yield Lost("question", str(id), "annotation without question")
    yield from by_picture.items()


def _no_object(member: object, otherwise: str) -> str:
    return otherwise if isinstance(member, dict) else "not an object"


def _annotation(member: dict[str, Any]) -> _Annotation:
    answers = member.get("answers")
    if isinstance(answers, list):
        answers = [a.get("answer") if isinstance(a, dict) else a for a in answers]
    types = [member.get(key) for key in ("question_type", "answer_type")]
    kinds = [sys.intern(text) if isinstance(text, str) else "" for text in types]
    return _Annotation(member.get("image_id"), _told(answers), (kinds[0], kinds[1]))


def _row(id: int, image: int, text: object, found: _Annotation | None, *, hidden: bool) -> Row:
    if found is None:
        return Row(str(id), text, problem=None if hidden else "question without annotation")
    problem = None
    if found.image != image:
        problem = "annotation of another picture"
    elif found.answers == () and not hidden:
        problem = "no answer"
    return Row(str(id), text, found.answers, types=found.types, problem=problem)


# ---------------------------------------------------------------------- lists of X-VLM


@dataclass(frozen=True, slots=True)
class Listed:
    """A member of a list.

    Attributes:
        image: path of the picture.
        of_vg: it starts from the picture folder of Visual Genome.
        row: the question.
    """

    image: str
    of_vg: bool
    row: Row


def read_list(path: Path, *, hidden: bool = False) -> Iterator[Lost | Listed]:
    """The members of a list as the released X-VLM code reads it.

    Args:
        path: the list.
        hidden: questions without ``answer`` are as they should be.
    """
    for number, member in enumerate(iter_array(path)):
        where = f"{path.stem}-{number}"
        image = member.get("image") if isinstance(member, dict) else None
        if not isinstance(image, str) or not image:
            yield Lost("question", where, _no_object(member, "no image"), image)
            continue
        id = member.get("question_id")
        answers = _told(member["answer"]) if "answer" in member else ()
        of_vg = member.get("dataset") in _VG_DATASETS
        row = Row(
            str(id) if not of_vg and isinstance(id, str | int) and id != "" else where,
            member.get("question"),
            answers,
            VG_WEIGHT if of_vg else 1.0,
            problem="no answer" if answers == () and not hidden else None,
        )
        yield Listed(image, of_vg, row)


# ---------------------------------------------------------------------- Visual Genome


def read_vg(path: Path) -> Iterator[Lost | tuple[int, list[Row]]]:
    """The entries of ``question_answers.json``: (Visual Genome id, rows), a picture each."""
    for number, member in enumerate(iter_array(path)):
        where = f"{path.name}[{number}]"
        id = member.get("id", member.get("image_id")) if isinstance(member, dict) else None
        asked = member.get("qas") if isinstance(member, dict) else None
        if not is_id(id) or not isinstance(asked, list):
            reason = _no_object(member, "no text" if is_id(id) else "no image")
            yield Lost("question", where, reason, id)
            continue
        yield id, [_vg_row(qa, f"{where}#{n}") for n, qa in enumerate(asked)]


def _vg_row(qa: object, where: str) -> Row:
    if not isinstance(qa, dict):
        return Row(where, qa, problem="not an object")
    id = qa.get("qa_id")
    answer = qa.get("answer")
    if isinstance(answer, str):  # "Red." to "red"
        answer = answer.strip().removesuffix(".").rstrip().lower()
    problem = "no answer" if answer in (None, "") else None
    name = f"vg-{id}" if is_id(id) else where  # VQA has other questions of the same number
    return Row(name, qa.get("question"), _told(answer), VG_WEIGHT, problem=problem)


def read_vg_names(path: Path) -> dict[int, tuple[object, object]]:
    """COCO id and Flickr photo id by Visual Genome id, of ``image_data.json``."""
    names: dict[int, tuple[object, object]] = {}
    for member in iter_array(path):
        if isinstance(member, dict) and is_id(member.get("image_id")):
            names[member["image_id"]] = (member.get("coco_id"), member.get("flickr_id"))
    return names
