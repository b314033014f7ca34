"""Answers learnt word by word, each as much as people gave it (X-VLM, section 4.3).

After Li et al., "Align before Fuse", NeurIPS 2021, section 5: VQA as the generation of answers.
For a question q about a picture, with the answers a of weights w(a)::

    L(q) = - sum_a w(a) sum_t log p(a_t | a_<t, q),    L = mean over the questions

The token after the last word (SEP) is predicted, too. The sum over the tokens of an answer is not
divided by their number, and no label is smoothed: a long answer weighs more, as released.

Legend: A answers, N tokens of all answers, V vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

NOTHING = -100
"""In place of a token to predict: there is none."""


def answer_losses(
    logits_NV: Tensor, next_N: Tensor, answer_of_token_N: Tensor, n_answers: int
) -> Tensor:
    """Minus the log-probability of each answer, ``(A,)`` float32.

    Args:
        logits_NV: vocabulary scores of the token that follows each token.
        next_N: that token, int64; :data:`NOTHING`: none is to be predicted.
        answer_of_token_N: the answer that each token belongs to, int64.
        n_answers: A.
    """
    losses_N = F.cross_entropy(logits_NV.float(), next_N, reduction="none", ignore_index=NOTHING)
    return losses_N.new_zeros(n_answers).index_add(0, answer_of_token_N, losses_N)


def answer_generation_loss(losses_A: Tensor, weight_A: Tensor, n_questions: int) -> Tensor:
    """The weighted sum over all answers, per question; a float32 scalar.

    In the released code each question brings its picture: there it is the number of pictures.

    Args:
        losses_A: of :func:`answer_losses`.
        weight_A: share of the people who gave each answer.
        n_questions: that the answers belong to.
    """
    return (losses_A * weight_A.float()).sum() / n_questions
