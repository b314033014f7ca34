"""The pre-training forward pass: pictures and texts of every grain through the three encoders.

X-VLM section 3 in one function. All cross-encoder rows of an update (matched pairs, hard negatives
of each pair, masked texts, texts to be boxed, absent texts) are one call.

Legend: I pictures, P patches, B texts, G texts of all parts of the update, V views (in
``token_logits_MV``: the vocabulary), M masked tokens, R rows that match or not, N texts that name
a part, A absent texts, Q = N + A.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xvlm_core.data.batches import PretrainBatch
from xvlm_core.models.text import TextStates, Views
from xvlm_core.models.xvlm import XVLM
from xvlm_core.objectives.contrastive import excluded_pairs, scale_gradient, similarity
from xvlm_core.objectives.matching import Negatives, draw_negatives
from xvlm_core.tasks.base import ALONE, Peers


@dataclass(frozen=True)
class Wanted:
    """Which losses are computed: what is not wanted costs nothing."""

    contrastive: bool = True
    matching: bool = True
    masked_lm: bool = True
    box: bool = True
    hard_negatives: int = 1
    """For matching, of each text and of each concept."""


@dataclass(frozen=True)
class PretrainOutputs:
    """What the losses are computed from; None where it was not wanted.

    Attributes:
        similarity_GG: concept against text of the whole update, over temperature; its gradient
            reaches the features of this part.
        excluded_GG: pairs that are no negatives; None: all others are.
        keys_G3: of the texts of the whole update (:class:`PretrainBatch`), where they have any.
        match_logits_R2: rows: B matched; negative concept with own text; own concept with
            negative text (rows without a candidate left out).
        match_label_R: 1 for the B matched rows, then 0.
        presence_logits_Q2: whole picture with its region texts, then with its absent texts
            (where the batch has absent texts and matching is wanted).
        presence_label_Q: 1, then 0.
        token_logits_MV: vocabulary scores of the masked tokens.
        boxes_cxcywh_N4: predictions for the N texts that name a part.
        target_cxcywh_N4: their boxes.
        rows_without_negative: matching rows that had no candidate.
        hidden: states of every cross-encoder row, in the order above (matched, negatives, masked,
            boxed, absent); kept for tests.
    """

    similarity_GG: Tensor | None = None
    excluded_GG: Tensor | None = None
    keys_G3: Tensor | None = None
    match_logits_R2: Tensor | None = None
    match_label_R: Tensor | None = None
    presence_logits_Q2: Tensor | None = None
    presence_label_Q: Tensor | None = None
    token_logits_MV: Tensor | None = None
    boxes_cxcywh_N4: Tensor | None = None
    target_cxcywh_N4: Tensor | None = None
    rows_without_negative: int = 0
    hidden: TextStates | None = None


CONCEPTS, TEXTS, KEYS = "concepts", "texts", "keys"
"""The tables that the contrastive loss asks its peers for."""


@torch.no_grad()
def contrastive_rows(model: XVLM, batch: PretrainBatch, wanted: Wanted) -> dict[str, Tensor]:
    """What :func:`pretrain_forward` will give its peers, by table: the unimodal encoders alone.

    To the bit, if torch's random numbers start at the same place: the same calls in the same order.
    """
    patches_IPS, states = _encode(model, batch, wanted)
    first_BD = states.first()[: batch.texts.packing.n_texts]
    rows = {
        CONCEPTS: model.picture_features(patches_IPS, concept_views(batch)),
        TEXTS: model.text_features(first_BD),
    }
    return rows if batch.keys_B3 is None else {**rows, KEYS: batch.keys_B3}


def _encode(model: XVLM, batch: PretrainBatch, wanted: Wanted) -> tuple[Tensor, TextStates]:
    """Patches of the pictures; states of the texts, then of the masked and of the absent ones."""
    patches_IPS = model.encode_pictures(batch.pictures_ICHW)
    texts = batch.texts
    if wanted.masked_lm:
        texts = texts.join(batch.masked)
    if wanted.matching and batch.absent is not None:
        texts = texts.join(batch.absent)
    return patches_IPS, model.encode_texts(texts)


def concept_views(batch: PretrainBatch) -> Views:
    """The visual concept of each text: its picture and the patches that it is about."""
    return Views(batch.picture_of_text_B, batch.mask_BP)


def pretrain_forward(
    model: XVLM,
    batch: PretrainBatch,
    wanted: Wanted,
    *,
    generator: torch.Generator | None = None,
    negatives: Negatives | None = None,
    gradient_scale: float = 1.0,
    peers: Peers = ALONE,
) -> PretrainOutputs:
    """Everything the losses need, in one pass.

    Args:
        model: with the heads of the wanted losses.
        batch: on the model's device.
        wanted: which losses.
        generator: draws the hard negatives (needed for matching unless ``negatives`` is given).
        negatives: the hard negatives to use instead of drawing.
        gradient_scale: factor on the gradient of the contrastive features (compat official).
        peers: the other parts of the update, for the contrastive loss.
    """
    with_absent = wanted.matching and batch.absent is not None
    # read back before the device has work: later these would wait for the encoders
    picture_of_text = batch.picture_of_text_B.tolist()
    picture_of_absent = (
        [] if batch.picture_of_absent_A is None else batch.picture_of_absent_A.tolist()
    )
    # texts that look at the whole picture: to be boxed, and to be told from the absent ones
    boxed = batch.is_region_B.nonzero()[:, 0].tolist() if wanted.box or with_absent else []
    if not (wanted.contrastive or wanted.matching or wanted.masked_lm or boxed):
        return PretrainOutputs()
    n_texts = batch.texts.packing.n_texts
    patches_IPS, states = _encode(model, batch, wanted)
    first_absent = n_texts * (2 if wanted.masked_lm else 1)
    concepts = concept_views(batch)

    similarity_GG = excluded_GG = keys_G3 = similarity_BB = None
    if wanted.contrastive or (wanted.matching and negatives is None):
        concept_BE = model.picture_features(patches_IPS, concepts)
        text_BE = model.text_features(states.first()[:n_texts])
        with torch.autocast(concept_BE.device.type, enabled=False):  # float32, also in bf16 runs
            if wanted.contrastive:
                concept_GE, first_own = peers.table(
                    CONCEPTS, scale_gradient(concept_BE, gradient_scale)
                )
                text_GE, _ = peers.table(TEXTS, scale_gradient(text_BE, gradient_scale))
                # every part has the whole gradient of the temperature: they add up to one
                temperature = scale_gradient(model.temp, 1 / peers.n_parts)
                similarity_GG = similarity(concept_GE, text_GE, temperature)
                mine = slice(first_own, first_own + n_texts)
                similarity_BB = similarity_GG[mine, mine].detach()
                if batch.keys_B3 is not None:
                    keys_G3, _ = peers.table(KEYS, batch.keys_B3)
                    excluded_GG = excluded_pairs(keys_G3)
            else:
                similarity_BB = similarity(
                    concept_BE.detach(), text_BE.detach(), model.temp.detach()
                )

    # rows of the cross encoder: (text, view); views: B concepts, then I whole pictures
    row_text: list[int] = []
    row_view: list[int] = []
    whole = n_texts
    match_rows = 0
    without = 0
    if wanted.matching:
        drawn = [negatives] if negatives is not None else []
        if not drawn:
            assert similarity_BB is not None
            assert generator is not None, "drawing hard negatives needs a generator"
            drawn = draw_negatives(
                similarity_BB, batch.excluded_BB, generator, wanted.hard_negatives
            )
        concept_of_text, text_of_concept = torch.stack(
            [
                torch.stack([d.concept_of_text_B.where(d.text_has_B, -1) for d in drawn]),
                torch.stack([d.text_of_concept_B.where(d.concept_has_B, -1) for d in drawn]),
            ]
        ).tolist()  # the host must know the lengths of the texts in each row
        pairs = [(b, b) for b in range(n_texts)]
        for row in concept_of_text:
            pairs += [(b, concept) for b, concept in enumerate(row) if concept >= 0]
        for row in text_of_concept:
            pairs += [(text, b) for b, text in enumerate(row) if text >= 0]
        row_text += [text for text, _ in pairs]
        row_view += [view for _, view in pairs]
        match_rows = len(pairs)
        without = (1 + 2 * len(drawn)) * n_texts - match_rows
    if wanted.masked_lm:
        row_text += range(n_texts, 2 * n_texts)
        row_view += range(n_texts)
    first_boxed = len(row_text)
    row_text += boxed
    row_view += [whole + picture_of_text[b] for b in boxed]
    if with_absent:
        row_text += range(first_absent, states.packing.n_texts)
        row_view += [whole + picture for picture in picture_of_absent]
    if not row_text:
        return PretrainOutputs(similarity_GG, excluded_GG, keys_G3)

    views = concepts
    if boxed or with_absent:
        views = concepts.join(model.whole(batch.n_pictures), patches_IPS.shape[1])
    view_of_row = torch.tensor(row_view, device=patches_IPS.device)
    hidden = model.fuse(states.select(row_text), patches_IPS, views, view_of_row)
    first = hidden.first()

    match_logits = match_label = presence_logits = presence_label = None
    if wanted.matching:
        match_logits = model.match_logits(first[:match_rows])
        match_label = torch.zeros(match_rows, dtype=torch.int64, device=first.device)
        match_label[:n_texts] = 1
    if with_absent:
        presence_logits = model.match_logits(first[first_boxed:])
        presence_label = torch.zeros(len(presence_logits), dtype=torch.int64, device=first.device)
        presence_label[: len(boxed)] = 1
    token_logits = None
    if wanted.masked_lm:
        starts = torch.tensor(hidden.packing.starts[match_rows : match_rows + n_texts])
        own = torch.tensor(batch.masked.packing.starts)
        owner = _owner(batch)
        moved = batch.masked_token_M + (starts - own).to(first.device)[owner]
        token_logits = model.text.predict_tokens(hidden.hidden_ND[moved])
    boxes = targets = None
    if wanted.box:
        boxes = model.boxes(first[first_boxed : first_boxed + len(boxed)])
        targets = batch.boxes_cxcywh_B4[batch.is_region_B]
    return PretrainOutputs(
        similarity_GG,
        excluded_GG,
        keys_G3,
        match_logits,
        match_label,
        presence_logits,
        presence_label,
        token_logits,
        boxes,
        targets,
        without,
        hidden,
    )


def _owner(batch: PretrainBatch) -> Tensor:
    """The text that each masked token belongs to, ``(M,)``."""
    packing = batch.masked.packing
    owner_of_token = torch.cat(
        [
            torch.tensor(packing.order[g.row : g.row + g.rows]).repeat_interleave(g.length)
            for g in packing.groups
        ]
    )
    return owner_of_token.to(batch.masked_token_M.device)[batch.masked_token_M]
