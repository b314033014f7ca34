"""``model.drop_path`` of a recipe, down to the blocks that timm builds."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from timm.layers.drop import DropPath
from torch import nn

from xvlm_core.config.schema import ModelSection
from xvlm_core.models.vision import VisionEncoder

SWIN = {"embed_dim": 8, "depths": [1, 2, 2], "num_heads": [1, 2, 2], "window_size": 4}
VIT = {"kind": "vit", "patch_size": 16, "embed_dim": 8, "depths": [5], "num_heads": [2]}


def section(**values: Any) -> ModelSection:
    return ModelSection.model_validate_json(json.dumps(values))


def encoder(vision: dict[str, Any], **values: Any) -> VisionEncoder:
    torch.manual_seed(0)
    overrides = {"vision": {**vision, "image_size": 64}}
    return VisionEncoder(section(size="small", overrides=overrides, **values).shape().vision)


def rates(model: nn.Module) -> list[list[float]]:
    """Chance of leaving out each residual branch of each block."""
    stacks = [m for name, m in model.named_modules() if name.endswith("blocks")]
    return [
        [
            float(m.drop_prob or 0) if isinstance(m, DropPath) else 0.0
            for name, m in block.named_children()
            if name.startswith("drop_path")
        ]
        for stack in stacks
        for block in stack.children()
    ]


@pytest.mark.parametrize("vision", [SWIN, VIT], ids=["swin", "vit"])
def test_it_grows_linearly_over_the_blocks_of_all_stages(vision: dict[str, Any]) -> None:
    got = rates(encoder(vision, drop_path=0.4))
    assert [len(block) for block in got] == [2] * 5
    for block, expected in zip(got, (0.0, 0.1, 0.2, 0.3, 0.4), strict=True):
        assert block == pytest.approx([expected, expected])
    assert rates(encoder(vision, drop_path=0)) == [[0.0, 0.0]] * 5


@pytest.mark.parametrize("vision", [SWIN, VIT], ids=["swin", "vit"])
def test_it_is_off_in_evaluation(vision: dict[str, Any]) -> None:
    dropping, plain = encoder(vision, drop_path=0.6), encoder(vision, drop_path=0)
    pictures = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(dropping.eval()(pictures), plain.eval()(pictures))
        assert not torch.equal(dropping.train()(pictures), plain.train()(pictures))
        assert not torch.equal(dropping(pictures), dropping(pictures))


def test_a_size_has_its_own_and_the_field_override_wins_as_for_the_other_keys() -> None:
    assert section(size="base").shape().vision.drop_path == 0.1
    assert section(size="tiny").shape().vision.drop_path == 0.0
    assert section(size="tiny", drop_path=0.2).shape().vision.drop_path == 0.2
    both = section(drop_path=0.2, overrides={"vision": {"drop_path": 0.3}})
    assert both.shape().vision.drop_path == 0.3


@pytest.mark.parametrize("value", [-0.1, 1, "0.2"])
def test_what_is_no_chance_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="drop_path"):
        section(drop_path=value)
