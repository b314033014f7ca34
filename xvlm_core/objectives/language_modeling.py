r"""Writing a text from left to right: cross-entropy of the next token.

X-VLM, section 4.3 (captions); Devlin et al. 2019 for the head; label smoothing after Szegedy et
al., "Rethinking the Inception Architecture", CVPR 2016, section 7, with the weights of the released
X-VLM code. For a text :math:`w_1 .. w_L` about a picture :math:`I`, of which the first :math:`p`
tokens (CLS and the prompt) are given,

.. math::
    \mathcal{L} = -\frac{1}{L - p} \sum_{t > p} \Big[ (1 - s) \log P(w_t | w_{<t}, I)
    + \frac{s}{K} \sum_{w \neq w_t} \log P(w | w_{<t}, I) \Big]

over the :math:`K` tokens of the vocabulary, and a mean over all such tokens of the batch. The
weights add up to :math:`1 - s / K`: the formula that PyTorch has built in gives the right token
:math:`s / K` more.

Legend: N packed tokens, M tokens to predict, V vocabulary, B texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xvlm_core.models.packing import PackedTexts


@dataclass(frozen=True)
class NextTokens:
    """What is to be predicted in packed texts, and from where.

    Attributes:
        place_M: packed index of the token before, whose state predicts, int64.
        label_M: the token itself, int64.
        text_M: number of the text that it is in, int64.
    """

    place_M: Tensor
    label_M: Tensor
    text_M: Tensor


def next_tokens(texts: PackedTexts, given: int = 1) -> NextTokens:
    """Every token after the given ones, text by text in packed order.

    Args:
        texts: B texts.
        given: tokens at the beginning of each that are not learnt: CLS, and those of a prompt.
    """
    assert given >= 1, "the first token has none before it"
    places, owners = [], []
    for group in texts.packing.groups:
        n = max(0, group.length - given)
        starts = group.start + group.length * torch.arange(group.rows)
        places.append((starts[:, None] + given - 1 + torch.arange(n)).reshape(-1))
        rows = torch.tensor(texts.packing.order[group.row : group.row + group.rows])
        owners.append(rows.repeat_interleave(n))
    place_M = torch.cat(places).to(texts.ids_N.device)
    text_M = torch.cat(owners).to(texts.ids_N.device)
    return NextTokens(place_M, texts.ids_N[place_M + 1], text_M)


def language_modeling_loss(logits_MV: Tensor, label_M: Tensor, smoothing: float = 0.0) -> Tensor:
    """The loss of the module's equation, a mean over the tokens.

    Args:
        logits_MV: vocabulary scores at the places before the tokens.
        label_M: the tokens, int64.
        smoothing: ``s``, in [0, 1).

    Returns:
        A float32 scalar; 0 (with a gradient path) where there is no token to predict.
    """
    if len(label_M) == 0:
        return logits_MV.float().sum()
    logp_MV = logits_MV.float().log_softmax(-1)
    right_M = logp_MV.gather(1, label_M[:, None])[:, 0]
    if smoothing == 0:
        return -right_M.mean()
    share = smoothing / logits_MV.shape[-1]
    return -((1 - smoothing - share) * right_M + share * logp_MV.sum(-1)).mean()


def token_log_probabilities(logits_MV: Tensor, label_M: Tensor) -> Tensor:
    """Log-probability of each token, ``(M,)`` float32.

    Args:
        logits_MV: vocabulary scores at the places before the tokens.
        label_M: the tokens, int64.
    """
    return logits_MV.float().log_softmax(-1).gather(1, label_M[:, None])[:, 0]
