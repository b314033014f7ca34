"""Heat maps, against the definition: what a nudge of an attention weight does to the match."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.shapes import bench_config
from xvlm_core.inference.heatmap import HeatMaps, Looks, look, look_again
from xvlm_core.models.attention import Attention, Views
from xvlm_core.models.packing import PackedTexts, Packing
from xvlm_core.models.xvlm import XVLM

TEXTS = [[2, 7, 8, 9], [2, 6], [2, 9, 5, 7], [2, 5, 6, 7, 8, 9]]
PICTURE_OF_TEXT = torch.tensor([0, 1, 1, 0])
LAYER = 2


@pytest.fixture(scope="module")
def model() -> XVLM:
    torch.manual_seed(4)
    return XVLM(bench_config(init="xavier")).eval()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))


def looks_of(model: XVLM, pictures: Tensor, layer: int = LAYER) -> Looks:
    return look(model, pictures, PackedTexts.from_lists(TEXTS), PICTURE_OF_TEXT, layer)


def test_attention_sums_to_one_and_the_answer_is_the_models_own(
    model: XVLM, pictures: Tensor
) -> None:
    looks = looks_of(model, pictures)
    with torch.no_grad():
        plain = model.ground(pictures, PackedTexts.from_lists(TEXTS), PICTURE_OF_TEXT)
        boxes = model.boxes(looks.first_BD)
    torch.testing.assert_close(looks.match_probability_B, plain.match_probability_B)
    torch.testing.assert_close(boxes, plain.boxes_cxcywh_B4)
    for group, seen in zip(looks.maps.packing.groups, looks.maps.attention, strict=True):
        assert seen.shape == (group.rows, 4, group.length, 17)
        torch.testing.assert_close(seen.sum(-1), torch.ones(seen.shape[:-1]))


def test_the_gradient_is_what_a_nudge_of_one_weight_does_to_the_match(
    model: XVLM, pictures: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = looks_of(model, pictures)
    step = 0.02
    plain_dropout = F.dropout

    def score(group: int, place: tuple[int, ...], by: float) -> float:
        shape = looks.maps.attention[group].shape

        def nudged(
            x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
        ) -> Tensor:
            if x.shape == shape:
                x = x.clone()
                x[place] += by
            return plain_dropout(x, p, training, inplace)

        with monkeypatch.context() as patch:
            patch.setattr(F, "dropout", nudged)
            return float(looks_of(model, pictures).match_logits_B2[:, 1].sum())

    for group, slopes in enumerate(looks.maps.gradient):
        for order in (0, 3):  # the steepest place, and another steep one
            at = int(slopes.abs().flatten().argsort(descending=True)[order])
            place = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), slopes.shape))
            slope = (score(group, place, step) - score(group, place, -step)) / (2 * step)
            assert float(slopes[place]) == pytest.approx(slope, rel=0.02)


def test_maps_are_the_mean_over_heads_and_tokens_of_what_raises_the_score() -> None:
    packing = Packing((3, 1))
    generator = torch.Generator().manual_seed(1)
    attention = tuple(torch.rand(1, 2, n, 5, generator=generator) for n in (1, 3))
    gradient = tuple(torch.randn(1, 2, n, 5, generator=generator) for n in (1, 3))
    maps = HeatMaps(packing, attention, gradient, 2)
    for text, (group, length) in {0: (1, 3), 1: (0, 1)}.items():
        expected = torch.zeros(length, 2, 2)
        for token in range(length):
            for row in range(2):
                for column in range(2):
                    place = 1 + 2 * row + column
                    for head in range(2):
                        slope = float(gradient[group][0, head, token, place])
                        seen = float(attention[group][0, head, token, place])
                        expected[token, row, column] += max(slope, 0.0) * seen / 2
        torch.testing.assert_close(maps.of_tokens()[text], expected)
        torch.testing.assert_close(maps.of_texts()[text], expected.mean(0))
        torch.testing.assert_close(maps.of_texts(padded_length=7)[text], expected.sum(0) / 7)


def test_watching_changes_nothing_else(model: XVLM, pictures: Tensor) -> None:
    """Also where a view shows a part of the picture."""
    layer = model.text.layers[LAYER]
    attention = layer.cross_attention
    assert isinstance(attention, Attention)
    packing = PackedTexts.from_lists(TEXTS).packing
    mask = torch.rand(2, 16, generator=torch.Generator().manual_seed(2)) < 0.5
    hidden = torch.randn(packing.n_tokens, 48, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        patches = model.encode_pictures(pictures)
        for views in (Views(torch.arange(2)), Views(torch.arange(2), mask)):
            args = (hidden, packing, patches, views, PICTURE_OF_TEXT[list(packing.order)])
            seen: list[Tensor] = []
            torch.testing.assert_close(
                attention.over_pictures(*args, watch=seen), attention.over_pictures(*args)
            )
            assert len(seen) == len(packing.groups)
    shown = torch.cat([torch.ones(2, 1, dtype=torch.bool), mask], dim=1)
    for group, one in zip(packing.groups, seen, strict=True):
        for row in range(group.rows):
            own = shown[PICTURE_OF_TEXT[packing.order[group.row + row]]]
            assert not one[row][..., ~own].any()


def test_nothing_keeps_a_graph_of_the_picture_encoder(model: XVLM, pictures: Tensor) -> None:
    seen: list[bool] = []
    handle = model.vision.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.requires_grad)
    )
    try:
        with torch.enable_grad():
            looks = looks_of(model, pictures)
    finally:
        handle.remove()
    assert seen == [False]
    assert not looks.first_BD.requires_grad
    assert not looks.maps.of_texts().requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_autocast_ends_at_the_layer_that_is_watched(model: XVLM, pictures: Tensor) -> None:
    """Gradients are small numbers: half precision would lose them."""
    with torch.no_grad():
        patches = model.encode_pictures(pictures)
        states = model.encode_texts(PackedTexts.from_lists(TEXTS))
    plain = look_again(model, patches, states, PICTURE_OF_TEXT, LAYER).maps.of_texts()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = look_again(model, patches, states, PICTURE_OF_TEXT, LAYER).maps.of_texts()
    assert model.config.text.fusion_layer == LAYER, "no layer below is in half precision"
    assert torch.equal(mixed, plain)
