"""Contrastive loss (X-VLM, Eq. 1-3).

Legend: B texts with their visual concepts, E joint width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity(concept_BE: Tensor, text_BE: Tensor, temperature: Tensor) -> Tensor:
    """Cosine over temperature, ``(B concepts, B texts)`` float32: s(V, T) / tau of Eq. 1-2."""
    return concept_BE.float() @ text_BE.float().T / temperature.float()


def excluded_pairs(keys_B3: Tensor) -> Tensor:
    """Pairs that are no negatives, the diagonal included, ``(B, B)`` bool.

    Args:
        keys_B3: int64; a text fits the concepts of the texts that share the number of a column
            with it, unless that is 0 (:func:`xvlm_core.data.collate.meaning_keys`).
    """
    excluded_BB = torch.eye(len(keys_B3), dtype=torch.bool, device=keys_B3.device)
    for keys_B in keys_B3.unbind(1):
        excluded_BB |= (keys_B[:, None] == keys_B[None, :]) & (keys_B != 0)[:, None]
    return excluded_BB


def contrastive_loss(similarity_BB: Tensor, excluded_BB: Tensor | None = None) -> Tensor:
    """Mean of the two cross-entropies, concept to text and text to concept (Eq. 3).

    Args:
        similarity_BB: ``similarity(...)``; the diagonal holds the pairs.
        excluded_BB: bool; pairs off the diagonal that are no negatives, because the text also
            fits the concept (same picture and same patches, or the same text). They are left out
            of both normalisations. None: every other pair is a negative (the released code).

    Returns:
        A float32 scalar.
    """
    if excluded_BB is not None:
        diagonal = torch.eye(len(similarity_BB), dtype=torch.bool, device=similarity_BB.device)
        similarity_BB = similarity_BB.masked_fill(excluded_BB & ~diagonal, float("-inf"))
    labels_B = torch.arange(len(similarity_BB), device=similarity_BB.device)
    to_text = F.cross_entropy(similarity_BB, labels_B)
    to_concept = F.cross_entropy(similarity_BB.T, labels_B)
    return (to_text + to_concept) / 2


def same_picture(keys_B3: Tensor) -> Tensor:
    """Texts that belong to one picture, the diagonal included, ``(B, B)`` bool.

    Args:
        keys_B3: as of :func:`excluded_pairs`: the last column is of the picture, 0 where a text
            is about a part.
    """
    picture_B = keys_B3[:, 2]
    same_BB = (picture_B[:, None] == picture_B[None, :]) & (picture_B != 0)[:, None]
    return same_BB | torch.eye(len(keys_B3), dtype=torch.bool, device=keys_B3.device)


def multi_positive_loss(
    similarity_BB: Tensor, positive_BB: Tensor, excluded_BB: Tensor | None = None
) -> Tensor:
    """Contrastive loss where a picture comes with several texts (Eq. 3 with another target).

    The target of a row is uniform over its positives: ``y_bc = P_bc / sum_c P_bc`` in place of
    the diagonal in ``-sum_c y_bc log softmax(s_b)_c``; its mean over rows, in both directions,
    halved. As the released code fine-tunes for retrieval (official.md 3.1).

    Args:
        similarity_BB: ``similarity(...)``.
        positive_BB: bool, symmetric: text c belongs to the picture of text b; with the diagonal.
        excluded_BB: bool; those of these that are no positives are no negatives either (the same
            words): left out of both normalisations. None: all others are negatives (the released
            code).

    Returns:
        A float32 scalar.
    """
    if excluded_BB is not None:
        similarity_BB = similarity_BB.masked_fill(excluded_BB & ~positive_BB, float("-inf"))
    target_BB = positive_BB.float() / positive_BB.sum(1, keepdim=True)

    def one_way(scores_BB: Tensor) -> Tensor:
        # left out, not multiplied by zero: an excluded pair is at minus infinity
        logs_BB = scores_BB.log_softmax(1).masked_fill(~positive_BB, 0.0)
        return -(target_BB * logs_BB).sum(1).mean()

    return (one_way(similarity_BB) + one_way(similarity_BB.T)) / 2


def scale_gradient(features: Tensor, scale: float) -> Tensor:
    """The same values, with their gradient multiplied by ``scale``.

    The released code averages a global loss over W ranks after each rank took only its own slice
    of the gradient: its encoders receive 1/W of the gradient of Eq. 3 (the temperature all of
    it). ``compat: official`` reproduces that with ``scale = 1 / official_ranks``.
    """
    if scale == 1.0:
        return features
    return features * scale + (features * (1 - scale)).detach()
