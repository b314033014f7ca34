"""Questions in JSON lines: one a line, and what each of several people answered."""

from __future__ import annotations

from collections import Counter
from typing import Any

from xvlm_core.data.text import sanitize

_OTHERS = frozenset({"questions", "text", "caption", "box", "captions", "regions", "images"})


def as_record(value: dict[str, Any]) -> dict[str, Any]:
    """A line with one question as a whole record with it; any other line, such as one that also has
    a text of the picture, as it is.

    ``{"image": "a.jpg", "question": "how many?", "answer": "2"}``; of several people ``answers``.
    The name of the question is ``question_id``, else ``id``.
    """
    if not isinstance(value.get("question"), str) or _OTHERS & value.keys():
        return value
    own: dict[str, Any] = {
        key: value[key] for key in ("question", "answer", "answers") if key in value
    }
    id = value.get("question_id", value.get("id"))
    if isinstance(id, str | int) and not isinstance(id, bool):
        own["id"] = str(id)
    of_question = {"question", "question_id", "id", "answer", "answers"}
    rest = {key: found for key, found in value.items() if key not in of_question}
    return {**rest, "questions": [own]}


def answers_of(question: dict[str, Any]) -> object:
    """The answers of a question as pairs with weights; what is no list as it is.

    Answers without a weight are those of people, who may say the same: each distinct one has the
    share of them that gave it. Of one answer there may be ``answer``, its text.
    """
    only = question.get("answer")
    found = question.get("answers", [] if only is None else [only])
    if not isinstance(found, list):
        return found
    texts = [a.get("answer") if isinstance(a, dict) else a for a in found]
    said = [text for text in texts if isinstance(text, str)]
    weighed = any(isinstance(a, dict) and "weight" in a for a in found)
    if weighed or len(said) < len(texts):
        weights = [a.get("weight", 1.0) if isinstance(a, dict) else 1.0 for a in found]
        return list(zip(texts, weights, strict=True))
    counts = Counter(map(sanitize, said))
    return [(text, round(n / len(said), 6)) for text, n in counts.items()]
