"""From a shape to the model of it."""

from __future__ import annotations

from typing import Literal

from xvlm_core.models.captioner import Captioner
from xvlm_core.models.nlvr2 import NLVR2
from xvlm_core.models.sizes import ModelConfig
from xvlm_core.models.vqa import VQA
from xvlm_core.models.xvlm import XVLM

Kind = Literal["plain", "pairs", "decoder", "causal"]


def kind_of(config: ModelConfig) -> Kind:
    """Which arrangement of the stacks a shape has."""
    if config.text.pictures == 2:
        return "pairs"
    if config.decoder_layers:
        return "decoder"
    return "causal" if config.text.causal else "plain"


def build_model(config: ModelConfig) -> XVLM:
    """The model of a shape, with fresh weights: its class follows from the shape."""
    classes: dict[Kind, type[XVLM]] = {
        "plain": XVLM,
        "pairs": NLVR2,
        "decoder": VQA,
        "causal": Captioner,
    }
    return classes[kind_of(config)](config)
