"""What an evaluation for ``xvlm evaluate`` is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

from xvlm_core.config.schema import ScoringSection
from xvlm_core.data.store import Store
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.tasks.base import Evaluation, Prediction
from xvlm_core.weights.folder import ModelInfo


class StoreEvaluation(Evaluation, Protocol):
    """An evaluation of the records of some stores' split.

    Attributes:
        NO_ANSWER: the fields of an answer that is as wrong as can be: stands for a missing one.
        of_pairs: whether its records are those of two pictures.
        dropped: items that could not be asked, by reason.
        examples: some of them, named.
        left_out: ids of all of them.
    """

    NO_ANSWER: ClassVar[dict[str, Any]]
    of_pairs: ClassVar[bool]
    dropped: Counter[str]
    examples: list[str]
    left_out: set[str]

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
