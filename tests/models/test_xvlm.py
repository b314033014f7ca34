from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.models.shapes import VOCABULARY, bench_config
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.sizes import ModelConfig
from xvlm_core.models.text import Views
from xvlm_core.models.xvlm import XVLM


def built(**text: Any) -> XVLM:
    torch.manual_seed(0)
    model = XVLM(bench_config(**text)).eval()
    with torch.no_grad():
        model.text.embeddings.word.weight.normal_()
        for p in model.bbox_head.parameters():
            p.mul_(2)
    return model


def texts(*lengths: int) -> PackedTexts:
    draw = torch.Generator().manual_seed(5)
    return PackedTexts.from_lists(
        [[2, *torch.randint(5, VOCABULARY, (n - 1,), generator=draw).tolist()] for n in lengths]
    )


def pictures(n: int) -> torch.Tensor:
    return torch.randn(n, 3, 128, 128, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("norm_first", [False, True])
@torch.no_grad()
def test_a_phrase_is_answered_from_its_own_picture_whatever_stands_beside_it(
    norm_first: bool,
) -> None:
    model, three, phrases = built(norm_first=norm_first), pictures(3), texts(4, 7, 4, 2, 9)
    owners = torch.tensor([2, 0, 0, 1, 2])
    together = model.ground(three, phrases, owners)
    assert together.boxes_cxcywh_B4.shape == (5, 4)
    assert ((together.boxes_cxcywh_B4 > 0) & (together.boxes_cxcywh_B4 < 1)).all()
    start = phrases.packing.starts
    for b in range(5):
        ids = phrases.ids_N[start[b] : start[b] + phrases.packing.lengths[b]].tolist()
        one = PackedTexts.from_lists([ids])
        alone = model.ground(three[owners[b]][None], one, torch.tensor([0]))
        assert torch.allclose(alone.boxes_cxcywh_B4[0], together.boxes_cxcywh_B4[b], atol=1e-5)
        assert torch.allclose(
            alone.match_probability_B[0], together.match_probability_B[b], atol=1e-5
        )
        elsewhere = model.ground(three[(owners[b] + 1) % 3][None], one, torch.tensor([0]))
        assert not torch.allclose(
            elsewhere.boxes_cxcywh_B4[0], together.boxes_cxcywh_B4[b], atol=1e-5
        )
    assert len({tuple(box) for box in together.boxes_cxcywh_B4.tolist()}) == 5


@torch.no_grad()
def test_a_view_sees_its_patches_alone() -> None:
    model = built()
    patches = model.encode_pictures(pictures(1))
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, [5, 6]] = True
    view = Views(torch.tensor([0]), mask)
    states = model.encode_texts(texts(5))
    zero = torch.tensor([0])
    seen = model.fuse(states, patches, view, zero).first()
    feature = model.picture_features(patches, view)
    changed = patches.clone()
    changed[:, [0, 4, 15]] += 5
    assert torch.allclose(model.fuse(states, changed, view, zero).first(), seen, atol=1e-5)
    assert torch.allclose(model.picture_features(changed, view), feature, atol=1e-6)
    changed[:, 5] += 5
    assert not torch.allclose(model.fuse(states, changed, view, zero).first(), seen, atol=1e-3)
    assert not torch.allclose(model.picture_features(changed, view), feature, atol=1e-3)


@torch.no_grad()
def test_features_are_unit_vectors_of_the_mean_patch_and_of_the_first_token() -> None:
    model = built()
    patches = model.encode_pictures(pictures(2))
    features = model.picture_features(patches, model.whole(2))
    expected = F.normalize(model.vision_proj(patches.mean(1)), dim=-1)
    assert torch.allclose(features, expected, atol=1e-5)
    states = model.encode_texts(texts(6, 3))
    of_text = model.text_features(states.first())
    assert torch.allclose(of_text.norm(dim=-1), torch.ones(2), atol=1e-5)
    assert features.shape == of_text.shape == (2, 32)


def test_the_temperature_is_clamped_to_its_range() -> None:
    model = built()
    for value, expected in ((0.9, 0.5), (1e-5, 0.001), (0.2, 0.2)):
        with torch.no_grad():
            model.temp.fill_(value)
        model.clamp_temperature()
        assert model.temp.item() == pytest.approx(expected)
    assert model.temp.requires_grad


@pytest.mark.parametrize(
    ("heads", "modules"),
    [
        (("contrastive",), {"vision_proj", "text_proj", "temp"}),
        (("matching",), {"itm_head"}),
        (("box",), {"bbox_head"}),
        (("masked_lm",), {"lm_head"}),
        (("matching", "box"), {"itm_head", "bbox_head"}),
        ((), set()),
    ],
)
def test_a_model_carries_the_heads_of_its_shape_and_no_other(
    heads: tuple[str, ...], modules: set[str]
) -> None:
    config = ModelConfig.model_validate({**bench_config().model_dump(), "heads": heads})
    names = [name for name, _ in XVLM(config).named_parameters()]
    every = ("vision_proj", "text_proj", "temp", "itm_head", "bbox_head", "lm_head")
    assert {head for head in every if any(head in name.split(".") for name in names)} == modules


def test_the_decoder_of_masked_tokens_is_the_word_embeddings() -> None:
    model = built()
    assert not [name for name, _ in model.named_parameters() if "decoder" in name]
    hidden = torch.randn(3, 48)
    scores = model.text.predict_tokens(hidden)
    assert scores.shape == (3, VOCABULARY)
    with torch.no_grad():
        model.text.embeddings.word.weight[7] += 1
    moved = (model.text.predict_tokens(hidden) - scores).abs().amax(0)
    assert moved[7] > 0
    assert moved[[6, 8]].max() == 0


def test_first_weights_are_berts_or_xaviers() -> None:
    torch.manual_seed(0)
    bert = XVLM(bench_config(hidden_size=96, intermediate_size=384))
    weight = bert.text.layers[0].mlp.fc1.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    cross = bert.text.layers[2].cross_attention
    assert cross is not None
    assert cross.key.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert bert.itm_head[0].weight.std().item() > 0.05, "heads keep PyTorch's own"
    assert bert.text.embeddings.word.weight[0].abs().max() == 0, "[PAD]"
    xavier = XVLM(bench_config(hidden_size=96, intermediate_size=384, init="xavier"))
    expected = (2 / (96 + 384)) ** 0.5
    assert xavier.text.layers[0].mlp.fc1.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_parameters_with_a_larger_learning_rate_are_those_of_cross_attention_and_heads() -> None:
    names = built().larger_lr_names
    assert {name.split(".")[0] for name in names} == {
        "text",
        "vision_proj",
        "text_proj",
        "temp",
        "itm_head",
        "bbox_head",
    }
    in_text = {name for name in names if name.startswith("text.")}
    assert len(in_text) == 2 * 10
    assert {name.split(".")[2] for name in in_text} == {"2", "3"}


@torch.no_grad()
def test_heads_features_and_pooling_are_computed_in_float32_in_bfloat16_runs() -> None:
    model = built()
    draw = torch.Generator().manual_seed(1)
    first_BD = torch.randn(3, 48, generator=draw)
    patches_IPS = torch.randn(2, 16, model.config.vision.width, generator=draw)
    views = Views(torch.tensor([0, 1, 1]), torch.rand(3, 16, generator=draw) < 0.5)
    for compute in (
        lambda: model.match_logits(first_BD),
        lambda: model.boxes(first_BD),
        lambda: model.text_features(first_BD),
        lambda: model.picture_features(patches_IPS, views),
        lambda: views.pool(patches_IPS),
    ):
        exact = compute()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = compute()
        assert mixed.dtype == torch.float32
        assert torch.equal(mixed, exact)
