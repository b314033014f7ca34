from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xvlm_core.errors import CheckpointError
from xvlm_core.models.sizes import tiny
from xvlm_core.models.xvlm import XVLM
from xvlm_core.train.ema import Ema


class Tied(nn.Module):
    """Tied weights, a frozen part, batch norm (floating and whole-number buffers), a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.decoder = nn.Linear(4, 6)
        self.decoder.weight = self.embedding.weight
        self.register_buffer("constant", torch.ones(4), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.frozen(self.norm(self.embedding(ids))) * self.constant)
        return out


def built(seed: int = 0) -> Tied:
    torch.manual_seed(seed)
    return Tied()


def train_step(model: nn.Module, number: int) -> None:
    """Moves every trainable weight; batch norm sees a batch."""
    draw = torch.Generator().manual_seed(number)
    model(torch.randint(6, (8,), generator=draw))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draw))


def contents(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name]), name


def decays(limit: float, n: int) -> list[float]:
    return [min(limit, (1 + i) / (10 + i)) for i in range(n)]


@pytest.mark.parametrize("limit", [0.9, 0.3, 0.9999])
def test_the_average_is_the_closed_formula(limit: float) -> None:
    """Sum over i of (1 - d_i) * product of the later decays * weights_i, and what is left of 0."""
    model = built()
    ema = Ema(model, limit)
    history = [model.embedding.weight.detach().double()]
    used = []
    for number in range(30):
        train_step(model, number)
        used.append(ema.next_decay)
        ema.update(model)
        history.append(model.embedding.weight.detach().double())
    assert used == decays(limit, 30)
    assert used[0] == min(limit, 0.1)
    factors = [1.0, *(1 - d for d in used)]
    later = torch.tensor([1.0, *used]).double().flip(0).cumprod(0).flip(0)  # d_i * ... * d_n
    weights = [f * (later[i + 1] if i + 1 < len(later) else 1.0) for i, f in enumerate(factors)]
    assert float(sum(weights)) == pytest.approx(1)
    expected = sum((w * h for w, h in zip(weights, history, strict=True)), torch.tensor(0.0))
    got = ema.state()["embedding.weight"]
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), expected, atol=1e-5)


def test_weights_that_stand_still_are_their_own_average_exactly() -> None:
    model = built()
    ema = Ema(model, 0.99)
    for _ in range(50):
        ema.update(model)
    assert torch.equal(ema.state()["embedding.weight"], model.embedding.weight)


def test_swapped_holds_the_average_and_gives_the_live_weights_back() -> None:
    model = built()
    ema = Ema(model, 0.9)
    for number in range(5):
        train_step(model, number)
        ema.update(model)
    train_step(model, 5)  # batch norm and weights have gone on since
    live, average = contents(model), ema.state()
    storages = [p.data_ptr() for p in model.parameters()]
    with ema.swapped(model):
        inside = contents(model)
        for name in average.keys() - {"n_updates"}:
            assert torch.equal(inside[name], average[name]), name
            assert not torch.equal(inside[name], live[name]), name
        assert torch.equal(model.decoder.weight, model.embedding.weight), "still tied"
        assert torch.equal(inside["frozen.weight"], live["frozen.weight"])
        assert torch.equal(inside["norm.num_batches_tracked"], live["norm.num_batches_tracked"])
        assert_equal(ema.state(), average)  # may be saved from inside
        with torch.no_grad():
            model.embedding.weight.zero_()  # undone, and not felt by the average
            model.norm(torch.randn(8, 4))
            model.norm.load_state_dict(
                {**model.norm.state_dict(), "num_batches_tracked": live["norm.num_batches_tracked"]}
            )
    assert_equal(contents(model), live)
    assert_equal(ema.state(), average)
    assert [p.data_ptr() for p in model.parameters()] == storages, "the optimizer knows these"


def test_the_live_weights_come_back_after_an_error_too() -> None:
    model = built()
    ema = Ema(model, 0.9)
    train_step(model, 0)
    live = contents(model)
    inside: dict[str, Tensor] = {}

    def interrupted() -> None:
        with ema.swapped(model):
            inside.update(contents(model))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not torch.equal(inside["embedding.weight"], live["embedding.weight"])
    assert_equal(contents(model), live)
    with ema.swapped(model):  # and it can be swapped again
        assert not torch.equal(model.embedding.weight, live["embedding.weight"])
    assert_equal(contents(model), live)


def test_training_between_swaps_is_the_training_without() -> None:
    ids = torch.tensor([0, 1, 2, 3, 4, 5, 5, 0])

    def trained(swap: bool) -> dict[str, Tensor]:
        model = built()
        ema = Ema(model, 0.9)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        for _ in range(6):
            optimizer.zero_grad()
            model(ids).logsumexp(1).sum().backward()
            optimizer.step()
            ema.update(model)
            if swap:
                with ema.swapped(model), torch.no_grad():
                    model.eval()(ids)
                model.train()
        return {**contents(model), **ema.state()}

    assert_equal(trained(swap=False), trained(swap=True))


def test_it_cannot_be_updated_or_swapped_while_swapped() -> None:
    model = built()
    ema = Ema(model, 0.9)
    with ema.swapped(model):
        with pytest.raises(AssertionError, match="averaged with itself"):
            ema.update(model)
        with pytest.raises(AssertionError, match="already"), ema.swapped(model):
            pass
    assert ema.n_updates == 0


@pytest.mark.parametrize("stop", [0, 3])
def test_state_through_a_file_continues_bit_for_bit(tmp_path: Path, stop: int) -> None:
    model = built()
    ema = Ema(model, 0.95)
    for number in range(stop):
        train_step(model, number)
        ema.update(model)
    save_file(ema.state(), tmp_path / "average.safetensors")
    resumed_model = copy.deepcopy(model)
    other = Ema(built(seed=1), 0.95)
    other.load(load_file(tmp_path / "average.safetensors"))
    assert other.n_updates == stop
    assert other.next_decay == ema.next_decay
    for number in range(stop, stop + 8):
        for one, average in ((model, ema), (resumed_model, other)):
            train_step(one, number)
            average.update(one)
    assert_equal(ema.state(), other.state())
    with ema.swapped(model), other.swapped(resumed_model):
        assert_equal(contents(model), contents(resumed_model))


def test_its_state_is_a_copy() -> None:
    model = built()
    ema = Ema(model, 0.9)
    before = ema.state()
    kept = {name: tensor.clone() for name, tensor in before.items()}
    train_step(model, 0)
    ema.update(model)
    assert_equal(before, kept)
    assert not torch.equal(ema.state()["embedding.weight"], kept["embedding.weight"])


def test_what_is_averaged_and_what_is_copied() -> None:
    model = built()
    ema = Ema(model, 0.9)
    assert set(ema.state()) == {
        "embedding.weight",  # once, under its first name
        "norm.weight",
        "norm.bias",
        "decoder.bias",
        "norm.running_mean",
        "norm.running_var",
        "n_updates",
    }
    train_step(model, 0)
    ema.update(model)
    assert torch.equal(ema.state()["norm.running_mean"], model.norm.running_mean)  # type: ignore[arg-type]
    assert int(ema.state()["n_updates"]) == ema.n_updates == 1


def test_a_model_in_bfloat16_has_an_average_in_float32() -> None:
    """A step of 2^-9 is lost in bfloat16 next to 1; the average must not lose it."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    ema = Ema(model, 0.9)
    nn.init.constant_(model.weight, 1.0 + 2**-7)
    ema.update(model)
    average = ema.state()["weight"]
    assert average.dtype == torch.float32
    assert average.item() == pytest.approx(1 + 0.9 * 2**-7, abs=1e-7)
    with ema.swapped(model):
        assert model.weight.dtype == torch.bfloat16
    assert model.weight.item() == 1 + 2**-7


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (lambda t: t.pop("norm.weight"), "norm.weight"),
        (lambda t: t.update({"more": torch.ones(1)}), "more"),
        (lambda t: t.update({"decoder.bias": torch.ones(7)}), "decoder.bias"),
        (lambda t: t.update({"decoder.bias": torch.ones(6).double()}), "decoder.bias"),
        (lambda t: t.pop("n_updates"), "n_updates"),
    ],
)
def test_a_state_of_another_model_is_refused_and_changes_nothing(spoil: object, name: str) -> None:
    model = built()
    ema = Ema(model, 0.9)
    before = ema.state()
    tensors = Ema(built(seed=1), 0.9).state()
    spoil(tensors)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=f"another model: {name} does not fit") as caught:
        ema.load(tensors, where="average.safetensors")
    assert caught.value.where == "average.safetensors"
    assert_equal(ema.state(), before)


def test_everything_frozen_is_an_average_of_nothing() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    ema = Ema(model, 0.9)
    ema.update(model)
    with ema.swapped(model):
        pass
    assert list(ema.state()) == ["n_updates"]


def test_the_real_model() -> None:
    torch.manual_seed(0)
    model = XVLM(tiny())
    model.temp.requires_grad_(False)
    ema = Ema(model, 0.5)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    buffers = {
        n for n, b in model.named_buffers() if n in model.state_dict() and b.dtype.is_floating_point
    }
    assert buffers, "the stem has batch norms"
    assert set(ema.state()) == names | buffers | {"n_updates"}
    live = contents(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    moved = contents(model)
    ema.update(model)
    with ema.swapped(model):
        inside = contents(model)
    assert_equal(contents(model), moved)
    for name in names:
        assert torch.allclose(inside[name], live[name] + 0.9, atol=1e-6)
    assert torch.equal(inside["temp"], moved["temp"])
