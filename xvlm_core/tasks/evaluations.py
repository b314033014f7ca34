"""Which evaluation belongs to which task: for ``xvlm evaluate``. Imports torch when asked."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xvlm_core.tasks.store_evaluation import StoreEvaluation

_CLASSES = {
    "grounding": "grounding_eval:GroundingEvaluation",
    "weak_grounding": "weak_grounding_eval:WeakGroundingEvaluation",
    "retrieval": "retrieval_eval:RetrievalEvaluation",
    "nlvr2": "nlvr2_eval:Nlvr2Evaluation",
    "vqa": "vqa_eval:VqaEvaluation",
    "captioning": "captioning_eval:CaptioningEvaluation",
}

EVALUATED = tuple(_CLASSES)
"""The tasks that can be evaluated."""


def evaluation_class(task: str) -> type[StoreEvaluation]:
    """The evaluation of a task of :data:`EVALUATED`. Imports torch."""
    module, _, attribute = _CLASSES[task].partition(":")
    found: type[StoreEvaluation] = getattr(
        importlib.import_module(f"xvlm_core.tasks.{module}"), attribute
    )
    return found
