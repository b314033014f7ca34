"""Accuracy of VQA v2: an answer counts as far as three people gave it. No torch.

Antol et al., "VQA: Visual Question Answering", ICCV 2015, section 4; as VQAEval of the released
code computes it (official.md 3.2), with everything that is odd about it: the answer is compared
after its normalisation (:func:`xvlm_core.sources.answers.normalise_answer`), those of the people
after its rule of punctuation alone, and as they stand where all of them are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from xvlm_core.sources.answers import normalise_answer, without_punctuation

ENOUGH = 3
"""People who gave an answer that is wholly right."""


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """The mean over the people of min(1, agreeing others / 3), in [0, 1].

    Each of the people is left out in turn, so that an answer of theirs is scored as a machine's is.
    Of one person there are no others: the answer is theirs, or wrong.

    Args:
        answer: of the model.
        people: what each of them answered, one at least.
    """
    assert people, "answers to compare with"
    answer = normalise_answer(answer)
    given = list(people)
    if len(set(given)) > 1:
        given = [without_punctuation(one) for one in given]
    same = [one == answer for one in given]
    if len(same) == 1:
        return float(same[0])
    total = sum(same)
    return sum(min(1.0, (total - own) / ENOUGH) for own in same) / len(same)


def exact_match(answer: str, people: Sequence[str]) -> bool:
    """Whether it is what most people answered, both normalised; of equally many: any of them.

    Answers of which the normalisation leaves nothing ("?", "the") do not count, nor match.
    """
    counts = Counter(filter(None, map(normalise_answer, people)))
    most = max(counts.values(), default=0)
    return counts.get(normalise_answer(answer), 0) == most > 0
