"""Recorded outputs of grounding, with and without boxes, by the code that answers and scores.

Padding is not computed: real tokens are compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden.case import assert_close, packed
from tests.golden.step import Reproduced
from tests.golden.task_case import TaskCase
from xvlm_core.data.boxes import cxcywh_to_xyxy
from xvlm_core.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from xvlm_core.inference.heatmap import HeatMaps, look
from xvlm_core.metrics.box_accuracy import iou_inclusive_pixel
from xvlm_core.metrics.heat_map import proposal_scores, resize
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.xvlm import XVLM
from xvlm_core.objectives.box import box_losses
from xvlm_core.weights.folder import ModelInfo, load_model_folder, save_model_folder
from xvlm_core.weights.official import from_official, to_official

LAYER = 2
EVERY = 8
"""Of the resized map, each 8th pixel is recorded."""

INPUTS = {
    "grounding_weak": {
        "image",
        "text_ids",
        "text_atts",
        "proposals_xywh",
        "image_wh",
        "gt_xywh",
    },
    "grounding_bbox": {
        "image",
        "text_ids",
        "text_atts",
        "target_bbox",
        "image_wh",
        "gt_xywh_px",
    },
}


def per_text(maps: HeatMaps, rows: tuple[Tensor, ...], length: int) -> Tensor:
    """``(B, H, length, 1 + P)``, zeros where the recorded run computed padding."""
    n, heads, _, places = len(maps.packing.lengths), *rows[0].shape[1:]
    out = torch.zeros(n, heads, length, places)
    for group, some in zip(maps.packing.groups, rows, strict=True):
        for row, one in enumerate(some):
            out[maps.packing.order[group.row + row], :, : group.length] = one
    return out


def corners(boxes_xywh: Tensor) -> np.ndarray:
    boxes = boxes_xywh.double().numpy()
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def weak(io: dict[str, Tensor], model: XVLM) -> dict[str, Reproduced]:
    n, length = io["text_ids"].shape
    texts = packed(io["text_ids"], io["text_atts"])
    looks = look(model, io["image"], texts, torch.arange(n), LAYER)
    heat = looks.maps.of_texts(padded_length=length)
    sizes = io["image_wh"].tolist()
    scores = [
        proposal_scores(one.numpy(), corners(boxes), width, height)
        for one, boxes, (width, height) in zip(heat, io["proposals_xywh"], sizes, strict=True)
    ]
    real = io["text_atts"].bool()[:, None, :, None].expand_as(io["attention_block2"])
    resized = resize(heat[0].numpy(), *sizes[0])[::EVERY, ::EVERY]
    return {
        "attention_block2": Reproduced(per_text(looks.maps, looks.maps.attention, length), real),
        "attention_grad_block2": Reproduced(
            per_text(looks.maps, looks.maps.gradient, length), real
        ),
        "heatmap_block2": Reproduced(heat),
        "itm_logits": Reproduced(looks.match_logits_B2),
        "heatmap_resized_0": Reproduced(torch.from_numpy(resized.copy())),
        "proposal_scores": Reproduced(torch.from_numpy(np.stack(scores))),
    }


def with_boxes(io: dict[str, Tensor], model: XVLM) -> dict[str, Reproduced]:
    texts = packed(io["text_ids"], io["text_atts"])
    every = torch.arange(len(io["image"]))
    with torch.no_grad():
        patches = model.encode_pictures(io["image"])
        states = model.encode_texts(texts)
        hidden = model.fuse(states, patches, model.whole(len(patches)), every)
        boxes = model.boxes(hidden.first())
    losses = box_losses(boxes, io["target_bbox"])
    sizes = np.tile(io["image_wh"].numpy(), 2)
    found = cxcywh_to_xyxy(boxes.numpy()) * sizes
    found_xywh = np.concatenate([found[:, :2], found[:, 2:] - found[:, :2]], axis=1)
    ious = iou_inclusive_pixel(found_xywh, io["gt_xywh_px"].numpy())
    return {
        "pred_boxes_cxcywh": Reproduced(boxes),
        "loss_bbox": Reproduced(losses.l1),
        "loss_giou": Reproduced(losses.giou),
        "pred_xywh_px": Reproduced(torch.from_numpy(found_xywh)),
        "iou_inclusive": Reproduced(torch.from_numpy(ious)),
    }


REPRODUCE: dict[str, Callable[[dict[str, Tensor], XVLM], dict[str, Reproduced]]] = {
    "grounding_weak": weak,
    "grounding_bbox": with_boxes,
}
CASES = list(REPRODUCE)


def check(case: str, io: dict[str, Tensor], model: XVLM) -> None:
    made = REPRODUCE[case](io, model)
    assert set(io) - INPUTS[case] == set(made), "recorded tensors that nothing reproduces"
    for name, one in made.items():
        # slopes of the attention are gradients
        told = name if "grad" not in name else f"grad_{name}"
        assert_close(told, one.value, io[name], one.where)


@pytest.fixture
def read(golden_root: Path | None) -> Callable[[str], TaskCase]:
    def read(case: str) -> TaskCase:
        if golden_root is None or not (golden_root / case / "io.safetensors").is_file():
            pytest.skip("no golden cases here")
        return TaskCase.read(golden_root / case)

    return read


@pytest.mark.parametrize("case", CASES)
def test_recorded_outputs_of_the_released_code_are_reproduced(
    case: str, read: Callable[[str], TaskCase]
) -> None:
    recorded = read(case)
    assert isinstance(recorded.model, XVLM)
    check(case, recorded.io, recorded.model)


@pytest.mark.parametrize("case", CASES)
def test_also_after_a_way_through_our_folder_and_back(
    case: str, read: Callable[[str], TaskCase], tmp_path: Path
) -> None:
    recorded = read(case)
    assert isinstance(recorded.model, XVLM)
    config = recorded.model.config
    words = [f"w{number}" for number in range(config.text.vocab_size - len(SPECIAL_TOKENS))]
    info = ModelInfo(task="grounding", max_words=30, max_tokens=40, config=config)
    tokenizer = Tokenizer.from_vocab([*SPECIAL_TOKENS, *words])
    save_model_folder(tmp_path / "ours", recorded.model, tokenizer, info)
    ours = load_model_folder(tmp_path / "ours").model.eval()
    check(case, recorded.io, ours)
    back = XVLM(config).eval()
    back.load_state_dict(from_official(to_official(ours.state_dict(), config), config).state)
    check(case, recorded.io, back)


def test_hits_of_the_released_metric(read: Callable[[str], TaskCase]) -> None:
    """The recorded accuracies of each split, from the recorded boxes and by the heat map."""
    recorded = read("grounding_bbox")
    assert isinstance(recorded.model, XVLM)
    ious = with_boxes(recorded.io, recorded.model)["iou_inclusive"].value
    splits = recorded.meta["splits"]
    for split in dict.fromkeys(splits):
        own = [float(iou) >= 0.5 for iou, of in zip(ious, splits, strict=True) if of == split]
        assert sum(own) / len(own) == recorded.meta["accuracies"][f"{split}_d"]


def test_a_text_is_looked_at_the_same_whatever_stands_beside_it(
    read: Callable[[str], TaskCase],
) -> None:
    recorded = read("grounding_weak")
    assert isinstance(recorded.model, XVLM)
    io = recorded.io
    texts = packed(io["text_ids"], io["text_atts"])
    together = look(recorded.model, io["image"], texts, torch.arange(2), LAYER).maps.of_texts()
    for b, row in enumerate(io["text_ids"]):
        alone = PackedTexts.from_lists([row[: int(io["text_atts"][b].sum())].tolist()])
        picture = torch.tensor([b])
        maps = look(recorded.model, io["image"], alone, picture, LAYER).maps
        assert_close("map", maps.of_texts(), together[b : b + 1])
        assert_close("map", maps.of_tokens()[0].mean(0)[None], together[b : b + 1])
    assert dataclasses.is_dataclass(maps)
