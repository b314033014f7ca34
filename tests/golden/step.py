"""What the pre-training step computes, under the names of the recorded cases."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.golden.case import Case, packed, padded
from xvlm_core.data.batches import PretrainBatch
from xvlm_core.data.boxes import patch_mask
from xvlm_core.models.text import Views
from xvlm_core.objectives.box import box_losses, cxcywh_to_xyxy, generalised_iou
from xvlm_core.objectives.contrastive import contrastive_loss, similarity
from xvlm_core.objectives.masked_lm import masked_lm_loss
from xvlm_core.objectives.matching import Negatives, matching_loss, negative_weights
from xvlm_core.tasks.pretrain_forward import Wanted, pretrain_forward
from xvlm_core.weights.official import official_name

INPUTS = {
    "image",
    "text_ids",
    "text_atts",
    "text_ids_masked",
    "masked_pos",
    "masked_ids",
    "itm_image_neg_idx",
    "itm_text_neg_idx",
    "idx_to_group_img",
    "is_image",
    "boxes_px_xywh",
    "target_bbox",
    "patch_boxes_px_xywh",
    "patch_boxes_px_xywh_224",
    "target_bbox_degenerate",
    "target_bbox_zero_area",
}


@dataclass(frozen=True)
class Reproduced:
    """A computed tensor; ``where``: the entries that are compared (real tokens)."""

    value: Tensor
    where: Tensor | None = None


def batch_of(case: Case) -> PretrainBatch:
    io = case.io
    regions = "idx_to_group_img" in io
    texts = packed(io["text_ids"], io["text_atts"])
    masked = packed(io["text_ids_masked"], io["text_atts"])
    n = texts.packing.n_texts
    real = io["masked_ids"] != -100
    starts = torch.tensor(masked.packing.starts)[:, None].expand_as(real)
    return PretrainBatch(
        pictures_ICHW=io["image"],
        texts=texts,
        picture_of_text_B=io["idx_to_group_img"] if regions else torch.arange(n),
        mask_BP=io["image_atts"][:, 1:].bool() if regions else None,
        boxes_cxcywh_B4=io["target_bbox"] if regions else torch.zeros(n, 4),
        is_region_B=io["is_image"] == 0 if regions else torch.zeros(n, dtype=torch.bool),
        keys_B3=None,
        masked=masked,
        masked_token_M=(starts + io["masked_pos"])[real],
        masked_label_M=io["masked_ids"][real],
        record_ids=tuple(str(i) for i in range(n)),
    )


def given_negatives(case: Case) -> Negatives:
    n = len(case.io["itm_image_neg_idx"])
    every = torch.ones(n, dtype=torch.bool)
    return Negatives(case.io["itm_image_neg_idx"], case.io["itm_text_neg_idx"], every, every)


def reproduce(case: Case) -> dict[str, Reproduced]:
    io, model, batch = case.io, case.model, batch_of(case)
    n, length = io["text_ids"].shape
    real = io["text_atts"].bool()
    regions = batch.mask_BP is not None
    made: dict[str, Reproduced] = {}

    def check(name: str, value: Tensor, where: Tensor | None = None) -> None:
        made[name] = Reproduced(value.detach().clone(), where)

    # encoders
    patches = model.encode_pictures(batch.pictures_ICHW)
    concepts = Views(batch.picture_of_text_B, batch.mask_BP)
    full = Views(batch.picture_of_text_B)
    sequence = patches[batch.picture_of_text_B]

    def with_pooled(views: Views) -> Tensor:
        return torch.cat([views.pool(patches)[:, None], sequence], dim=1)

    if regions:
        check("region_embeds", with_pooled(concepts))
        check("full_embeds", with_pooled(full))
    else:
        check("image_embeds", with_pooled(full))
        check("image_atts", torch.ones(n, 1 + patches.shape[1], dtype=torch.int64))
    states = model.encode_texts(batch.texts)
    check("text_embeds", padded(states, length), real)
    image_feat, text_feat = (
        model.picture_features(patches, concepts),
        model.text_features(states.first()),
    )
    check("image_feat", image_feat)
    check("text_feat", text_feat)
    scores = similarity(image_feat, text_feat, model.temp)
    check("itm_weights_t2i", negative_weights(scores.T, batch.excluded_BB))
    check("itm_weights_i2t", negative_weights(scores, batch.excluded_BB))

    # the step
    out = pretrain_forward(model, batch, Wanted(box=regions), negatives=given_negatives(case))
    assert out.hidden is not None
    check(
        "cross_hidden_region" if regions else "cross_hidden_matched",
        padded(out.hidden, length, range(n)),
        real,
    )
    masked_hidden = padded(out.hidden, length, range(3 * n, 4 * n))
    if not regions:
        check("cross_hidden_masked_text", masked_hidden, real)
    assert out.match_logits_R2 is not None
    assert out.match_label_R is not None
    check("itm_logits", out.match_logits_R2)
    at = io["masked_pos"][..., None].expand(-1, -1, masked_hidden.shape[-1])
    check("mlm_logits", model.text.predict_tokens(masked_hidden.gather(1, at)))
    assert out.similarity_GG is not None
    assert out.token_logits_MV is not None
    losses = {
        "loss_itc": contrastive_loss(out.similarity_GG),
        "loss_itm": matching_loss(out.match_logits_R2, out.match_label_R),
        "loss_mlm": masked_lm_loss(out.token_logits_MV, batch.masked_label_M),
    }
    if regions:
        assert out.boxes_cxcywh_N4 is not None
        assert out.target_cxcywh_N4 is not None
        box = box_losses(out.boxes_cxcywh_N4, out.target_cxcywh_N4)
        losses |= {"loss_bbox": box.l1, "loss_giou": box.giou}
    total = torch.stack(list(losses.values())).sum()
    for name, value in {**losses, "loss_total": total}.items():
        check(name, value)

    # gradients
    model.zero_grad()
    total.backward()
    parameters = {official_name(name): p for name, p in model.named_parameters()}
    for name, official in case.meta["gradients"].items():
        grad = parameters[official].grad
        assert grad is not None, official
        check(name, grad)

    with torch.no_grad():
        if regions:
            made["image_atts"] = Reproduced(io["image_atts"])
            made |= box_head_cases(case, batch, patches)
        else:
            made |= temperature_cases(case, image_feat, text_feat)
    return made


def temperature_cases(case: Case, image_feat: Tensor, text_feat: Tensor) -> dict[str, Reproduced]:
    made = {}
    before = case.model.temp.clone()
    for start, mark in ((0.9, "0p9"), (1e-4, "1em4")):
        case.model.temp.fill_(start)
        case.model.clamp_temperature()
        made[f"temp_after_{mark}"] = Reproduced(case.model.temp.detach().clone())
        loss = contrastive_loss(similarity(image_feat, text_feat, case.model.temp))
        made[f"loss_itc_temp_{mark}"] = Reproduced(loss)
    case.model.temp.copy_(before)
    return made


def box_head_cases(case: Case, batch: PretrainBatch, patches: Tensor) -> dict[str, Reproduced]:
    io, model = case.io, case.model
    length, real = io["text_ids"].shape[1], io["text_atts"].bool()
    whole = model.whole(batch.n_pictures)
    states = model.encode_texts(batch.texts)
    hidden = model.fuse(states, patches, whole, batch.picture_of_text_B)
    boxes = model.boxes(hidden.first())
    target = io["target_bbox"]
    no_flags = box_losses(boxes, target)
    made = {
        "cross_hidden_full": Reproduced(padded(hidden, length), real),
        "pred_boxes_cxcywh": Reproduced(boxes),
        "giou_per_pair": Reproduced(generalised_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target))),
        "loss_bbox_no_flags": Reproduced(no_flags.l1),
        "loss_giou_no_flags": Reproduced(no_flags.giou),
    }
    part = batch.is_region_B
    if "target_bbox_zero_area" in io:
        zero_area = box_losses(boxes[part], io["target_bbox_zero_area"][part])
        made["loss_bbox_zero_area"] = Reproduced(zero_area.l1)
        made["loss_giou_zero_area"] = Reproduced(zero_area.giou)
        inverted = io["target_bbox_degenerate"][part]
        made["loss_bbox_degenerate"] = Reproduced(box_losses(boxes[part], inverted).l1)
        # The released code zeroes the GIoU of the WHOLE batch for one inverted target. Our targets
        # are checked when they are read: no batch holds one, there is no such rule to reproduce.
        made["loss_giou_degenerate"] = Reproduced(torch.zeros(()))
    for boxes_name, mask_name, side in (
        ("patch_boxes_px_xywh", "patch_atts", 128),
        ("patch_boxes_px_xywh_224", "patch_atts_224", 224),
    ):
        if boxes_name in io:
            rows = io[boxes_name].numpy()
            masks = torch.stack([torch.from_numpy(patch_mask(row, side // 32, 32)) for row in rows])
            made[mask_name] = Reproduced(torch.nn.functional.pad(masks, (1, 0), value=True))
    return made
