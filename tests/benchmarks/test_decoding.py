"""Beams take a third of the operations of the released procedure, and find the same captions."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import decoding
from xvlm_core.inference.generate import Lengths, beam_search
from xvlm_core.models.text import Layer


def test_at_least_three_times_fewer_operations_than_released() -> None:
    result = decoding.measure("small", pictures=2)
    assert result.same
    assert result.fewer >= decoding.GOAL == 3.0


def test_keys_of_a_picture_are_projected_once_whatever_the_beams_and_steps() -> None:
    model = decoding.captioner("tiny")
    patches = torch.randn(2, 64, model.config.vision.width)
    asked: list[tuple[int, ...]] = []
    for layer in model.text.layers:
        assert isinstance(layer, Layer)
        if layer.cross_attention is not None:
            layer.cross_attention.key.register_forward_hook(
                lambda _module, given, _out: asked.append(tuple(given[0].shape))
            )
    with torch.no_grad():
        beam_search(model.speaker(patches), decoding.PROMPT, Lengths(decoding.END), 3)
    assert asked == [tuple(patches.shape)] * 2, "two cross layers, once each"


def test_more_beams_cost_nothing_on_the_side_of_the_picture() -> None:
    few, many = (decoding.measure("tiny", pictures=1, beams=beams, length=8) for beams in (2, 4))
    # released: two more rows of 65 tokens, projected at each step, twice, in two layers
    shown = 2 * 64 * 64 * 64 * 2 * 2
    steps = 4
    grown, released = many.flops - few.flops, many.released_flops - few.released_flops
    assert released - grown >= 2 * steps * shown


def test_a_document_has_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--size", "tiny", "--pictures", "1", "--length", "8", "--json"]
    assert decoding.main(words) == 1, "a small model with a large vocabulary misses the goal"
    made = json.loads(capsys.readouterr().out)
    assert made["fewer"] == made["released_flops"] / made["flops"]
    assert made["same"] is True
