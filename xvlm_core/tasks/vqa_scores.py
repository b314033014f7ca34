"""Figures of VQA: accuracy by what people answered, by type of question and of answer. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from xvlm_core.metrics.bootstrap import interval
from xvlm_core.metrics.vqa_accuracy import exact_match, vqa_accuracy
from xvlm_core.sources.answers import normalise_answer
from xvlm_core.tasks.base import Prediction, Score, Scores

SELECTION = "accuracy"

_HOW = "VQA v2: min(1, people who agree / 3), each left out in turn"


def score(predictions: Sequence[Prediction], split: str) -> Scores:
    """Accuracy over the questions whose answers are known; none where all are hidden.

    Each id counts once.

    Args:
        predictions: with ``id``, ``record`` (drawn together for the intervals: the questions of one
            picture), ``answer``, ``answers`` (of the people; empty: hidden), ``kind`` and
            ``answer_kind`` (a text, or None).
        split: that they are of.
    """
    assert len({p["id"] for p in predictions}) == len(predictions), "an id is predicted twice"
    known = [p for p in predictions if p["answers"]]
    if not known:
        return {}
    values = [vqa_accuracy(p["answer"], p["answers"]) for p in known]
    scores: Scores = {SELECTION: _mean(known, values, split, _HOW)}
    exact = [float(exact_match(p["answer"], p["answers"])) for p in known]
    scores["exact match"] = _mean(known, exact, split, "what most people answered, both normalised")
    for key, what in (("answer_kind", "answers"), ("kind", "questions")):
        kinds = sorted({p[key] for p in known if p[key]})
        for kind in kinds if len(kinds) > 1 else ():
            of_kind = [n for n, p in enumerate(known) if p[key] == kind]
            scores[f"{SELECTION}, {what}: {kind}"] = _mean(
                [known[n] for n in of_kind], [values[n] for n in of_kind], split, "of these alone"
            )
    constant = _most_common(known)
    scores["baseline: one answer"] = Score(
        sum(vqa_accuracy(constant, p["answers"]) for p in known) / len(known),
        split,
        f"always {constant!r}, the most frequent of this very split",
        len(known),
    )
    return scores


def _mean(
    predictions: Sequence[Prediction], values: Sequence[float], split: str, how: str
) -> Score:
    spread = interval(list(values), [p["record"] for p in predictions])
    return Score(sum(values) / len(values), split, how, len(values), interval=spread)


def _most_common(predictions: Sequence[Prediction]) -> str:
    counts = Counter(normalise_answer(one) for p in predictions for one in p["answers"])
    del counts[""]  # of "?", which stands for people whose answer is not known
    return counts.most_common(1)[0][0] if counts else ""
