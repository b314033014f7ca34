"""Which evaluation belongs to which task: for ``xvlm evaluate``. Imports torch when asked."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

from xvlm_core.config.schema import ScoringSection
from xvlm_core.data.store import Store
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.tasks.base import Evaluation, Prediction
from xvlm_core.weights.folder import ModelInfo

_CLASSES = {
    "grounding": "grounding_eval:GroundingEvaluation",
    "weak_grounding": "weak_grounding_eval:WeakGroundingEvaluation",
    "retrieval": "retrieval_eval:RetrievalEvaluation",
    "nlvr2": "nlvr2_eval:Nlvr2Evaluation",
}


class StoreEvaluation(Evaluation, Protocol):
    """An evaluation of the records of some stores' split.

    Attributes:
        NO_ANSWER: the fields of an answer that is as wrong as can be: stands for a missing one.
        dropped: items that could not be asked, by reason.
        examples: some of them, named.
    """

    NO_ANSWER: ClassVar[dict[str, Any]]
    dropped: Counter[str]
    examples: list[str]

    @classmethod
    def of_model(
        cls,
        stores: Sequence[Store],
        split: str,
        tokenizer: Tokenizer,
        info: ModelInfo,
        *,
        scoring: ScoringSection | None = None,
        limit: int | None = None,
    ) -> StoreEvaluation:
        """Items as a model wants them."""

    def references(self) -> Iterator[Prediction]:
        """What ``score`` wants of each item beside the answer: ``id``, targets, kinds.

        No picture is opened and no model is needed. ``{**answer, **reference}`` is a prediction.
        """


def evaluation_class(task: str) -> type[StoreEvaluation]:
    """The evaluation of a task."""
    module, _, attribute = _CLASSES[task].partition(":")
    found: type[StoreEvaluation] = getattr(
        importlib.import_module(f"xvlm_core.tasks.{module}"), attribute
    )
    return found


def tasks() -> tuple[str, ...]:
    """Those that can be evaluated."""
    return tuple(_CLASSES)
