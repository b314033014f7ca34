r"""Self-critical sequence training: captions are drawn, and those that score well become likelier.

Rennie et al., "Self-Critical Sequence Training for Image Captioning", CVPR 2017, Eq. 7 and 8
(REINFORCE, Williams 1992, with a baseline). For :math:`n` captions :math:`y` drawn from the model
for a picture :math:`I`, with rewards :math:`r(y)` and a baseline :math:`b` that does not depend on
the draw,

.. math::
    \mathcal{L} = -\frac{1}{n} \sum_{y} \big(r(y) - b\big) \,
    \frac{1}{|y|} \sum_{t} \log P(y_t | y_{<t}, I)

and a mean over pictures: minus its gradient is that of the expected reward, where the mean over the
tokens stands for the sum. The released code takes that mean (over the words that were drawn, and
the end), and so do we. ``b`` is the reward of the most probable caption (greedy), or the mean
reward of the other draws for the picture.

Legend: B captions, M tokens that were drawn in all of them, G pictures, n captions a picture.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_log_probabilities(logprob_M: Tensor, text_M: Tensor, n_texts: int) -> Tensor:
    """Mean over the tokens of each caption, ``(B,)`` float32; 0 where it has none.

    Args:
        logprob_M: log-probabilities of tokens.
        text_M: the caption of each, int64.
        n_texts: B.
    """
    ones_B = torch.zeros(n_texts, device=logprob_M.device)
    count_B = ones_B.index_add(0, text_M, torch.ones_like(logprob_M, dtype=torch.float32))
    return ones_B.index_add(0, text_M, logprob_M.float()) / count_B.clamp(min=1)


def baseline_of_others(reward_Gn: Tensor) -> Tensor:
    """For each caption the mean reward of the other captions of its picture, ``(G, n)``.

    Args:
        reward_Gn: of n > 1 captions of each picture.
    """
    n = reward_Gn.shape[1]
    assert n > 1, "there is no other caption"
    return (reward_Gn.sum(1, keepdim=True) - reward_Gn) / (n - 1)


def self_critical_loss(logprob_B: Tensor, reward_B: Tensor, baseline_B: Tensor) -> Tensor:
    """The loss of the module's equation, a float32 scalar; 0 where there is no caption.

    Args:
        logprob_B: of each caption, as :func:`mean_log_probabilities` has it.
        reward_B: of each; carries no gradient.
        baseline_B: the same for the baseline.
    """
    if len(logprob_B) == 0:
        return logprob_B.float().sum()
    advantage_B = (reward_B - baseline_B).detach().float()
    return -(logprob_B.float() * advantage_B).mean()
