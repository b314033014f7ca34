from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.shapes import bench_config
from xvlm_core.models.sizes import VisionConfig, tiny
from xvlm_core.models.vision import VisionEncoder, sine_positions


def vit(**changes: Any) -> VisionConfig:
    values = {
        "kind": "vit",
        "image_size": 64,
        "patch_size": 16,
        "embed_dim": 32,
        "depths": (1,),
        "num_heads": (2,),
        "drop_path": 0.0,
        **changes,
    }
    return VisionConfig(**values)


SHAPES = {
    "swin": bench_config().vision,
    "swin of one window a stage": VisionConfig(
        image_size=64, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=8, drop_path=0.0
    ),
    "vit": vit(),
    "vit, sine": vit(sine_positions=True),
    "vit, stem and sine": vit(conv_stem=True, sine_positions=True),
}


@pytest.fixture(params=list(SHAPES))
def encoder(request: pytest.FixtureRequest) -> VisionEncoder:
    torch.manual_seed(0)
    return VisionEncoder(SHAPES[request.param]).eval()


def test_pictures_become_patch_tokens_row_by_row(encoder: VisionEncoder) -> None:
    config = encoder.config
    side, grid = config.image_size, config.grid
    step = side // grid

    def lit(place: int) -> slice:
        # the stem's strided convolutions are centred on the first pixels of a patch
        shift = -step // 4 if config.conv_stem else step // 4
        start = max(0, place * step + shift)
        return slice(start, place * step + shift + step // 2)

    dark = torch.zeros(1, 3, side, side)
    with torch.no_grad():
        before = encoder(dark)
        assert before.shape == (1, grid * grid, config.width)
        for row, column in ((0, 0), (0, grid - 1), (1, 2), (grid - 1, 1)):
            light = dark.clone()
            light[:, :, lit(row), lit(column)] = 3.0
            change = (encoder(light) - before)[0].norm(dim=-1)
            assert int(change.argmax()) == row * grid + column, (row, column)


def test_a_picture_does_not_depend_on_the_others_of_its_batch(encoder: VisionEncoder) -> None:
    side = encoder.config.image_size
    pictures = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = encoder(pictures)
        for i in range(3):
            assert torch.allclose(encoder(pictures[i : i + 1])[0], together[i], atol=1e-5)


def test_tokens_come_after_the_final_norm() -> None:
    for name in ("swin", "vit"):
        encoder = VisionEncoder(SHAPES[name]).eval()
        side = encoder.config.image_size
        with torch.no_grad():
            tokens = encoder(torch.randn(2, 3, side, side))
        assert torch.allclose(tokens.mean(-1), torch.zeros(()), atol=1e-4)
        assert torch.allclose(tokens.var(-1, unbiased=False), torch.ones(()), atol=1e-2)


def test_equal_patches_at_different_places_are_told_apart() -> None:
    for name in ("vit", "vit, sine", "vit, stem and sine"):
        encoder = VisionEncoder(SHAPES[name]).eval()
        with torch.no_grad():
            tokens = encoder(torch.zeros(1, 3, 64, 64))[0]
        distance = torch.cdist(tokens, tokens) + 9 * torch.eye(len(tokens))
        assert distance.min() > 1e-4, name


@pytest.mark.parametrize(("grid", "width"), [(1, 8), (2, 8), (4, 16), (8, 64), (7, 32), (16, 64)])
def test_sine_positions_are_distinct_bounded_and_always_the_same(grid: int, width: int) -> None:
    torch.manual_seed(grid)
    positions = sine_positions(grid, width)
    assert positions.shape == (grid * grid, width)
    assert positions.dtype == torch.float32
    assert torch.equal(positions, sine_positions(grid, width))
    assert positions.abs().max() <= 1
    distance = torch.cdist(positions, positions) + 9 * torch.eye(grid * grid)
    assert distance.min() > 0.05
    by_place = positions.view(grid, grid, 2, width // 2)
    assert torch.equal(by_place[:, :1, 0].expand(-1, grid, -1), by_place[:, :, 0]), "rows first"
    assert torch.equal(by_place[:1, :, 1].expand(grid, -1, -1), by_place[:, :, 1])


def test_sine_positions_are_not_stored_and_not_learnt() -> None:
    encoder = VisionEncoder(tiny().vision)
    assert not [n for n in encoder.state_dict() if "position" in n]
    assert not [n for n, _ in encoder.named_parameters() if "pos" in n]
    assert [n for n, _ in VisionEncoder(vit()).named_parameters() if n.endswith("pos_embed")]


def test_stochastic_depth_is_for_training_alone() -> None:
    config = SHAPES["swin"].model_copy(update={"drop_path": 0.5})
    encoder = VisionEncoder(config)
    pictures = torch.randn(4, 3, 128, 128)
    with torch.no_grad():
        encoder.eval()
        assert torch.equal(encoder(pictures), encoder(pictures))
        encoder.train()
        assert not torch.equal(encoder(pictures), encoder(pictures))


def test_tokens_of_the_convolutional_stem_are_centred_on_their_patches() -> None:
    encoder = VisionEncoder(vit(conv_stem=True, sine_positions=True, image_size=128))
    stem = encoder.backbone.patch_embed.stem.eval()
    picture = torch.randn(1, 3, 128, 128, requires_grad=True)
    (grad,) = torch.autograd.grad(stem(picture)[0, :, 3, 4].square().sum(), picture)
    for axis, index in ((1, 3), (0, 4)):
        seen = grad.abs().sum(dim=(0, 1)).sum(dim=axis).nonzero()[:, 0]
        centre = (seen[0] + seen[-1]).item() / 2
        assert abs(centre - (16 * index + 7.5)) <= 1.5


def test_the_gradient_of_one_picture_is_its_share_of_that_of_a_batch(
    encoder: VisionEncoder,
) -> None:
    encoder = encoder.double()
    side = encoder.config.image_size
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randn(2, 3, side, side, generator=draw, dtype=torch.float64)
    tokens = encoder(pictures)
    weights = torch.randn(tokens.shape, generator=draw, dtype=torch.float64)
    (tokens * weights).sum().backward()
    together = {name: p.grad.clone() for name, p in encoder.named_parameters()}
    encoder.zero_grad()
    for i in range(2):
        (encoder(pictures[i : i + 1]) * weights[i : i + 1]).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert torch.allclose(parameter.grad, together[name], rtol=1e-6, atol=1e-9), name
