"""Answers of questions: what the VQA evaluation takes for the same, and lists to choose from.

``normalise_answer`` and ``without_punctuation`` do what VQAEval does (``vqaTools/vqaEval.py`` of
the released X-VLM code), with everything that is odd about it, so that accuracies can be compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from xvlm_core.data.text import EmptyTextError, pre_caption, sanitize
from xvlm_core.errors import DataError
from xvlm_core.listing import some_lines
from xvlm_core.sources.strict_json import JsonProblem, parse, refuse_encoding

LIST_SIZE = 3128
"""Answers in the list of the paper."""

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")
"""A full stop before anything but a digit. The first part, meant to look back, never holds."""
_PERIODS = 32
"""Full stops that are removed: VQAEval passes a flag (re.UNICODE, 32) where the count belongs."""

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(n) for n, word in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}

_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word
    for word in _CONTRACTED.split()
    for at, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}
"""A word that lacks one apostrophe to the word with it; the last one is the wrong way round in
VQAEval. Its entries with a capital I never apply, as the text is in lower case by then."""


def without_punctuation(text: str) -> str:
    """Punctuation removed as VQAEval does; all that it does to the answers of people.

    A mark that has a space beside it anywhere in the text is deleted everywhere, any other becomes
    a space; if a comma stands between digits, all marks are deleted. Full stops are deleted except
    before a digit. Apostrophes and colons stay.
    """
    out = text
    digit_comma = _DIGIT_COMMA.search(text) is not None
    for mark in _PUNCTUATION:
        apart = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if apart or digit_comma else " ")
    return _PERIOD.sub("", out, _PERIODS)


def normalise_answer(text: str) -> str:
    """An answer as VQAEval compares a prediction: all that it takes for the same is the same.

    Line ends and tabs to spaces, ``without_punctuation``, lower case, number words to digits
    ("none" to "0", up to "ten"), articles dropped, missing apostrophes put into contractions, one
    space between words. May be empty.
    """
    text = without_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@lru_cache(maxsize=1 << 16)
def is_wordless(text: str) -> bool:
    """Whether nothing is left of it that a model could read or say ("?", "...")."""
    try:
        pre_caption(sanitize(text), 1)
    except EmptyTextError:
        return True
    return False


@dataclass(frozen=True)
class AnswerList:
    """Answers that a model chooses from.

    Attributes:
        answers: no two the same, none without a word.
        source: "built" from the answers of people, or "given" as a file.
    """

    answers: tuple[str, ...]
    source: str

    def coverage(self, counts: Mapping[str, int]) -> float | None:
        """The share of given answers that are in the list, compared as ``normalise_answer`` does.

        Args:
            counts: how often each answer was given, as people wrote it.

        Returns:
            In [0, 1]; None if there are no answers.
        """
        total = sum(counts.values())
        known = {normalise_answer(answer) for answer in self.answers}
        inside = sum(n for text, n in counts.items() if normalise_answer(text) in known)
        return inside / total if total else None

    def to_json(self, counts: Mapping[str, int]) -> bytes:
        """The file ``answers.json`` of a store: ``answers``, ``source`` and ``coverage``.

        Args:
            counts: how often each answer was given in training, as people wrote it.
        """
        content = {
            "answers": list(self.answers),
            "source": self.source,
            "coverage": self.coverage(counts),
        }
        return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def build_answer_list(
    counts: Mapping[str, int], size: int = LIST_SIZE, min_count: int = 1
) -> AnswerList:
    """The most frequent answers, normalised; of equally frequent ones the first by text.

    Args:
        counts: how often each answer was given, as people wrote it.
        size: at most so many.
        min_count: leave out what was given less often, all spellings together.

    Raises:
        DataError: none is left.
    """
    normalised: dict[str, int] = {}
    for text, n in counts.items():
        answer = normalise_answer(text)
        if not is_wordless(answer):
            normalised[answer] = normalised.get(answer, 0) + n
    frequent = [answer for answer, n in normalised.items() if n >= min_count]
    frequent.sort(key=lambda answer: (-normalised[answer], answer))
    if not frequent:
        raise DataError(
            f"none of {len(normalised)} different answers was given {min_count} times",
            try_="a smaller --answer-min-count, or --answer-list FILE",
        )
    return AnswerList(tuple(frequent[:size]), "built")


_FORMS = 'a file with a JSON list of texts, ["yes", "no"], or one answer a line'


def read_answer_list(path: Path) -> AnswerList:
    """A file with one answer a line, or a JSON list of texts; answers stay as they are written.

    The ``answers.json`` of a store is one, too.

    Raises:
        DataError: it cannot be read, is empty, has one answer only, or one that is no text, has no
            word or comes twice.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}", where=str(path), try_=_FORMS
        ) from error
    refuse_encoding(path, data[:4])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 (byte {error.start})",
            where=str(path),
            try_=f"iconv -f LATIN1 -t UTF-8 {path} > NEW_FILE",
        ) from error
    if text.lstrip()[:1] in ("[", "{"):
        places = _members(path, text)
    else:
        lines = text.splitlines()
        places = [(f"line {n}", line.strip()) for n, line in enumerate(lines, 1) if line.strip()]
    return AnswerList(tuple(_checked(path, places)), "given")


_ANOTHER = "prepare the data again, or scoring.answers=FILE  (one answer a line)"


def parse_answers(data: bytes, where: str) -> tuple[str, ...]:
    """The answers of ``answers.json`` of a store.

    Args:
        data: its content.
        where: its place, for messages.

    Raises:
        DataError: it is damaged, has fewer than two answers, or one that is no text, has no word
            or comes twice.
    """
    try:
        content = parse(data.decode("utf-8"))
    except (JsonProblem, UnicodeDecodeError):
        content = None
    answers = content.get("answers") if isinstance(content, dict) else None
    if not isinstance(answers, list):
        raise DataError(
            f"{where} has no list of answers",
            where=where,
            try_=_ANOTHER,
        )
    places = [(f"[{n}]", answer) for n, answer in enumerate(answers)]
    return tuple(_checked(Path(where), places, _ANOTHER))


def _members(path: Path, text: str) -> list[tuple[str, object]]:
    try:
        content = parse(text)
    except JsonProblem as error:
        said = [error.reason * (error.reason != "not JSON"), error.seen]
        raise DataError(
            ": ".join([f"{path} is not valid JSON", *(str(part) for part in said if part)]),
            where=str(path),
            try_=_FORMS,
        ) from error
    if isinstance(content, dict) and isinstance(content.get("answers"), list):
        content = content["answers"]
    if not isinstance(content, list):
        raise DataError(
            f"{path} is not a list of answers but an object", where=str(path), try_=_FORMS
        )
    return [(f"[{n}]", answer) for n, answer in enumerate(content)]


_SHOWN = 60
"""Characters of an answer in a message."""


def _checked(
    path: Path, places: Iterable[tuple[str, object]], try_: str | None = None
) -> list[str]:
    first: dict[str, str] = {}
    problems = []
    for place, given in places:
        if not isinstance(given, str):
            problems.append(f"{place} is no text: {json.dumps(given)[:_SHOWN]}")
            continue
        answer = sanitize(given)
        if is_wordless(answer):
            problems.append(f"{place} has no word: {given[:_SHOWN]!r}")
        elif answer in first:
            problems.append(f"{place} is the same as {first[answer]}: {answer[:_SHOWN]!r}")
        else:
            first[answer] = place
    if problems:
        raise DataError(
            f"{len(problems)} of the answers of {path} cannot be chosen",
            details=some_lines(problems, 10),
            where=str(path),
            try_=try_ or "take them out of the file",
        )
    if len(first) < 2:
        raise DataError(
            f"{path} has fewer than two answers: there is nothing to choose from",
            where=str(path),
            try_=try_ or _FORMS,
        )
    return list(first)
