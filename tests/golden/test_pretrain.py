"""Every recorded tensor of the pre-training step, and its gradients.

The recorded run computes padding tokens; ours has none, so hidden states are compared at real
tokens (padding influences nothing else).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from tests.golden.case import Case, assert_close, packed
from tests.golden.step import INPUTS, batch_of, given_negatives, reproduce
from xvlm_core.objectives.box import box_losses
from xvlm_core.tasks.pretrain_forward import Wanted, pretrain_forward


def test_every_recorded_tensor_of_the_step_is_reproduced(pretrain_case: Path) -> None:
    case = Case.read(pretrain_case)
    made = reproduce(case)
    recorded = set(case.io) - INPUTS
    assert recorded <= set(made), "recorded tensors that nothing reproduces"
    assert len(recorded) > 20
    for name in sorted(recorded):
        assert_close(name, made[name].value, case.io[name], made[name].where)


def test_a_text_that_stands_alone_gets_the_same_answer_as_in_its_batch(
    pretrain_case: Path,
) -> None:
    case = Case.read(pretrain_case)
    batch = batch_of(case)
    with torch.no_grad():
        together = case.model.ground(batch.pictures_ICHW, batch.texts, batch.picture_of_text_B)
        for b in range(batch.texts.packing.n_texts):
            alone = case.model.ground(
                batch.pictures_ICHW[batch.picture_of_text_B[b]][None],
                packed(case.io["text_ids"][b : b + 1], case.io["text_atts"][b : b + 1]),
                torch.zeros(1, dtype=torch.int64),
            )
            assert torch.allclose(alone.boxes_cxcywh_B4[0], together.boxes_cxcywh_B4[b], atol=1e-5)


def test_a_batch_without_regions_has_finite_losses(pretrain_case: Path) -> None:
    case = Case.read(pretrain_case)
    batch = dataclasses.replace(
        batch_of(case), is_region_B=torch.zeros(len(case.io["text_ids"]), dtype=torch.bool)
    )
    out = pretrain_forward(case.model, batch, Wanted(), negatives=given_negatives(case))
    assert out.boxes_cxcywh_N4 is not None
    assert out.target_cxcywh_N4 is not None
    box = box_losses(out.boxes_cxcywh_N4, out.target_cxcywh_N4)
    assert box.l1.item() == 0 == box.giou.item()
