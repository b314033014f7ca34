"""Activation checkpointing: the same numbers from less memory."""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from tests.models.shapes import VOCABULARY, bench_config
from xvlm_core.models.checkpointing import checkpoint_activations
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.sizes import ModelConfig, tiny
from xvlm_core.models.text import Views
from xvlm_core.models.xvlm import XVLM

LENGTHS, PICTURES = (5, 9, 3, 12, 4, 7, 6), (0, 0, 1, 1, 1, 2, 2)


def changed(config: ModelConfig, **parts: dict[str, Any]) -> ModelConfig:
    tree = config.model_dump()
    for name, values in parts.items():
        tree[name] = {**tree[name], **values}
    return ModelConfig.model_validate(tree)


SHAPES = {
    "swin": changed(
        bench_config(dropout=0.1, num_layers=6, fusion_layer=3),
        vision={"drop_path": 0.3, "depths": (2, 2, 6, 2)},
    ),
    "vit, sine positions": changed(
        tiny(),
        vision={"depths": (6,), "drop_path": 0.3},
        text={"dropout": 0.1, "num_layers": 6, "fusion_layer": 3, "vocab_size": VOCABULARY},
    ),
    "vit, learnt positions": changed(
        tiny(),
        vision={"depths": (3,), "drop_path": 0.3, "sine_positions": False, "conv_stem": False},
        text={"dropout": 0.1, "vocab_size": VOCABULARY},
    ),
}


def built(shape: str) -> XVLM:
    torch.manual_seed(0)
    return XVLM(SHAPES[shape]).train()


class Losses(nn.Module):
    """A loss of each head on regions of three pictures, as one module (what DDP wraps)."""

    def __init__(self, model: XVLM, *, with_boxes: bool = True) -> None:
        super().__init__()
        self.model = model
        self.with_boxes = with_boxes

    def forward(self) -> dict[str, Tensor]:
        model, vision = self.model, self.model.config.vision
        draws = torch.Generator().manual_seed(3)
        pictures = torch.randn(3, 3, vision.image_size, vision.image_size, generator=draws)
        ids = [[2, *torch.randint(5, VOCABULARY, (n,), generator=draws).tolist()] for n in LENGTHS]
        n = len(ids)
        seen = torch.rand(n, vision.grid**2, generator=draws) < 0.4
        seen[:, 0] = True
        regions, whole = Views(torch.tensor(PICTURES), seen), model.whole(3)
        patches_IPS = model.encode_pictures(pictures)
        states = model.encode_texts(PackedTexts.from_lists(ids))
        # positives, a negative of each, the whole picture for the box: one pass, as in training
        rows = [*range(n), *range(n), *range(n)]
        views = torch.tensor(
            [*range(n), *[(i + 1) % n for i in range(n)], *[n + p for p in PICTURES]]
        )
        joined = regions.join(whole, patches_IPS.shape[1])
        fused = model.fuse(states.select(rows), patches_IPS, joined, views)
        first_RD = fused.first()
        features_BE = model.picture_features(patches_IPS, regions)
        similarity_BB = features_BE @ model.text_features(states.first()).T / model.temp
        label_R = torch.tensor([1] * n + [0] * n)
        losses = {
            "contrastive": F.cross_entropy(similarity_BB, torch.arange(n)),
            "matching": F.cross_entropy(model.match_logits(first_RD[: 2 * n]), label_R),
            "masked_lm": F.cross_entropy(
                model.text.predict_tokens(fused.hidden_ND[:5]), torch.arange(5, 10)
            ),
        }
        if self.with_boxes:
            losses["box"] = (model.boxes(first_RD[2 * n :]) - 0.4).abs().sum()
        return losses


@dataclass
class Step:
    """What one step gave: losses, gradients, buffers, the next random number."""

    losses: dict[str, Tensor]
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]
    draw: Tensor


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def step(model: XVLM, *, autocast: bool = False, wrapped: nn.Module | None = None) -> Step:
    torch.manual_seed(1)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = (wrapped or Losses(model))()
    total(losses).backward()  # type: ignore[no-untyped-call]
    return Step(
        {name: value.detach() for name, value in losses.items()},
        {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
        {name: value.clone() for name, value in model.named_buffers()},
        torch.rand(3),
    )


def assert_same_bits(one: Step, other: Step) -> None:
    for mine, theirs in zip(vars(one).values(), vars(other).values(), strict=True):
        if isinstance(mine, Tensor):
            assert torch.equal(mine, theirs), "random numbers went on differently"
            continue
        assert list(mine) == list(theirs)
        for name in mine:
            assert torch.equal(mine[name], theirs[name]), name


@dataclass
class Kept:
    """Bytes that autograd keeps for backward, weights and shared memory counted once at most."""

    weights: set[int]
    bytes: int = 0
    seen: dict[int, Tensor] = field(default_factory=dict)

    def pack(self, tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in self.weights and place not in self.seen:
            self.seen[place] = tensor  # holds the memory, so that no other tensor takes its place
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor


def kept_bytes(model: XVLM, *, autocast: bool = False) -> int:
    torch.manual_seed(1)
    kept = Kept({p.untyped_storage().data_ptr() for p in model.parameters()})
    with (
        saved_tensors_hooks(kept.pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        losses = Losses(model)()
    assert losses
    return kept.bytes


@pytest.fixture(params=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_losses_gradients_and_random_numbers_are_the_same_bits(shape: str, autocast: bool) -> None:
    model = built(shape)
    other = copy.deepcopy(model)
    other.checkpoint_activations()
    plain = step(model, autocast=autocast)
    assert len(plain.losses) == 4
    assert all(value.isfinite() for value in plain.losses.values())
    assert_same_bits(plain, step(other, autocast=autocast))
    torch.manual_seed(2)
    again = Losses(model)()["matching"]
    assert not torch.equal(again, plain.losses["matching"]), "drop-out and drop path take part"


@pytest.mark.parametrize("name", ["swin", "vit, sine positions"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_backward_keeps_less_than_a_third_of_the_bytes(name: str, autocast: bool) -> None:
    model = built(name)
    plain = kept_bytes(model, autocast=autocast)
    model.checkpoint_activations()
    fewer = kept_bytes(model, autocast=autocast)
    assert 3 * fewer < plain, f"{plain:,} -> {fewer:,} bytes"


def test_each_encoder_saves_its_part(shape: str) -> None:
    """Not one of the two stacks alone."""
    model = built(shape)
    plain = kept_bytes(model)
    for part in (model.vision, model.text):
        assert checkpoint_activations(part) > 0
        fewer = kept_bytes(model)
        assert fewer < 0.9 * plain
        checkpoint_activations(part, on=False)
    assert kept_bytes(model) == plain, "off again"


def checkpointed_layers(model: nn.Module) -> Iterator[nn.Module]:
    yield from model.text.layers  # type: ignore[union-attr,misc]
    for name, module in model.named_modules():
        if name.endswith(".blocks"):
            yield from module.children()


def calls(model: XVLM, run: Any) -> dict[int, int]:
    """How often each layer ran."""
    counts: dict[int, int] = {}
    hooks = []
    for number, layer in enumerate(checkpointed_layers(model)):

        def count(*_: Any, number: int = number) -> None:
            counts[number] = counts.get(number, 0) + 1

        hooks.append(layer.register_forward_pre_hook(count))
    run()
    for hook in hooks:
        hook.remove()
    return counts


def test_every_layer_is_computed_once_more_and_no_more(shape: str) -> None:
    model = built(shape)
    layers = len(list(checkpointed_layers(model)))
    config = model.config
    assert layers == config.text.num_layers + sum(config.vision.depths)
    plain = calls(model, lambda: step(model))
    assert len(plain) == layers
    model.checkpoint_activations()
    assert calls(model, lambda: step(model)) == {n: 2 * count for n, count in plain.items()}


def test_nothing_is_computed_again_in_evaluation_or_without_gradients(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("checkpointed where there is nothing to save")

    model = built(shape)
    with torch.no_grad():
        torch.manual_seed(4)
        plain = Losses(model)()
    model.checkpoint_activations()
    monkeypatch.setattr("xvlm_core.models.checkpointing.checkpoint", refuse)
    monkeypatch.setattr("torch.utils.checkpoint.checkpoint", refuse)
    with torch.no_grad():
        torch.manual_seed(4)
        off = Losses(model)()
    assert all(torch.equal(plain[name], off[name]) for name in plain)
    with FlopCounterMode(display=False) as forward:
        total(Losses(model.eval())()).backward()  # type: ignore[no-untyped-call]
    model.checkpoint_activations(False)
    with FlopCounterMode(display=False) as expected:
        total(Losses(model)()).backward()  # type: ignore[no-untyped-call]
    assert forward.get_total_flops() == expected.get_total_flops() > 0
    model.train().checkpoint_activations()
    with pytest.raises(AssertionError, match="nothing to save"):
        Losses(model)()


def test_a_frozen_encoder_and_a_copy_of_the_model_work_as_well() -> None:
    model = built("swin")
    for parameter in model.vision.parameters():
        parameter.requires_grad_(False)
    model.text.embeddings.requires_grad_(False)  # the first layers' input needs no gradient
    plain = step(model)
    model.checkpoint_activations()
    assert_same_bits(plain, step(copy.deepcopy(model)))
    assert not any(name.startswith("vision.") for name in plain.gradients)
    assert any(name.startswith("text.layers.0.") for name in plain.gradients)


def test_a_model_without_layers_says_so() -> None:
    assert checkpoint_activations(nn.Linear(2, 2)) == 0
    assert checkpoint_activations(built("swin")) == 5  # the text stack and four stages


def test_names_and_order_of_the_parameters_are_timms() -> None:
    """Weights of timm's own models load by name."""
    names = [n for n, _ in built("vit, learnt positions").vision.backbone.named_parameters()]
    assert names[0] == "pos_embed"
    assert next(n for n in names if n.startswith("blocks.")) == "blocks.0.norm1.weight"
    swin = [n for n, _ in built("swin").vision.backbone.named_parameters()]
    assert "layers.2.blocks.5.attn.relative_position_bias_table" in swin


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(  # type: ignore[attr-defined]
        str(folder / "store"), 2
    )
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model = built("swin")
    plain: list[Step] = []
    fewer: list[Step] = []
    for on, steps in ((False, plain), (True, fewer)):
        model.checkpoint_activations(on)
        for with_boxes in (True, False):  # false: a head without gradient
            wrapped = DistributedDataParallel(
                Losses(model, with_boxes=with_boxes),
                find_unused_parameters=True,
                broadcast_buffers=False,
            )
            for autocast in (False, True):
                steps.append(step(model, autocast=autocast, wrapped=wrapped))
    for one, other in zip(plain, fewer, strict=True):
        assert_same_bits(one, other)
    torch.distributed.destroy_process_group()


def test_data_parallel_ranks_get_the_same_bits(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_rank, args=(rank, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0, 0]
