"""Masked language modelling with a picture (X-VLM, Eq. 5).

Legend: M masked tokens of the batch, V vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def masked_lm_loss(logits_MV: Tensor, label_M: Tensor) -> Tensor:
    """Cross-entropy of the masked tokens given the other tokens and the concept (Eq. 5).

    Args:
        logits_MV: vocabulary scores of the masked positions only.
        label_M: the tokens that stood there, int64.

    Returns:
        A float32 scalar; 0 (with a gradient path) where nothing is masked.
    """
    if len(label_M) == 0:
        return logits_MV.float().sum()
    return F.cross_entropy(logits_MV.float(), label_M)
