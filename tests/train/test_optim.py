from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from xvlm_core.config.schema import OptimSection
from xvlm_core.models.sizes import base
from xvlm_core.models.xvlm import XVLM
from xvlm_core.train.optim import (
    OfficialAdamW,
    ParameterGroup,
    build_optimizer,
    parameter_groups,
    set_lr,
)
from xvlm_core.weights.official import official_name


class Parts(nn.Module):
    """One parameter of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.norm = nn.LayerNorm(3)
        self.head = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
        self.word = nn.Embedding(5, 3)
        self.position = nn.Embedding(4, 3)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 3))
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.composition = nn.Parameter(torch.zeros(2, 2))  # "pos" inside a word is no position
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)


def names(groups: tuple[ParameterGroup, ...]) -> list[set[str]]:
    return [set(group.names) for group in groups]


def test_no_decay_on_norms_biases_scalars_and_position_tables() -> None:
    groups = parameter_groups(Parts(), OptimSection(), larger_lr_names={"head.0.weight", "temp"})
    assert [(g.weight_decay, g.lr_mult) for g in groups] == [(0.01, 1), (0, 1), (0.01, 2), (0, 2)]
    assert names(groups) == [
        {"linear.weight", "word.weight", "composition"},
        {
            "linear.bias",
            "norm.weight",
            "norm.bias",
            "head.0.bias",
            "head.1.weight",
            "head.1.bias",
            "position.weight",
            "relative_position_bias_table",
            "pos_embed",
        },
        {"head.0.weight"},
        {"temp"},
    ]
    assert [g.n_elements for g in groups] == [6 + 15 + 4, 3 + 6 + 3 + 6 + 12 + 18 + 12, 9, 1]


def test_official_compat_goes_by_substrings_of_official_names() -> None:
    decayed, undecayed, _, _ = names(parameter_groups(Parts(), OptimSection(), compat="official"))
    assert {"temp", "head.1.weight", "position.weight", "pos_embed"} <= decayed
    assert {"relative_position_bias_table", "norm.weight", "linear.bias"} <= undecayed
    renamed = parameter_groups(
        Parts(),
        OptimSection(),
        compat="official",
        name_of=lambda name: name.replace("word.weight", "LayerNorm.weight"),
    )
    assert "word.weight" in renamed[1].names


def test_official_group_sizes_of_the_base_model() -> None:
    """official.md 2.9: tensors and numbers of each group, from a run of the released code."""
    with torch.device("meta"):
        model = XVLM(base())
    groups = parameter_groups(
        model,
        OptimSection(),
        compat="official",
        larger_lr_names=model.larger_lr_names,
        name_of=official_name,
    )
    assert [(g.n_tensors, g.n_elements) for g in groups] == [
        (176, 195_873_792),
        (353, 383_730),
        (33, 19_345_409),
        (44, 34_310),
    ]
    ours = parameter_groups(model, OptimSection(), larger_lr_names=model.larger_lr_names)
    moved = set(groups[0].names + groups[2].names) - set(ours[0].names + ours[2].names)
    assert moved == {
        "temp",
        "itm_head.1.weight",
        "bbox_head.1.weight",
        "text.embeddings.position.weight",
    }
    assert sum(g.n_elements for g in ours) == sum(p.numel() for p in model.parameters())


def adamw_of_the_released_code(
    parameter: np.ndarray, grads: list[np.ndarray], lr: float, decay: float, eps: float
) -> np.ndarray:
    """official.md 2.9, in float64."""
    m = v = np.zeros_like(parameter)
    for t, grad in enumerate(grads, start=1):
        m = 0.9 * m + 0.1 * grad
        v = 0.98 * v + 0.02 * grad * grad
        size = lr * math.sqrt(1 - 0.98**t) / (1 - 0.9**t)
        parameter = parameter - size * m / (np.sqrt(v) + eps)
        parameter = parameter - lr * decay * parameter
    return parameter


@pytest.mark.parametrize("eps", [1e-8, 0.3])
def test_official_adamw_is_the_released_form(eps: float) -> None:
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=7), [rng.normal(size=7) for _ in range(5)]
    expected = adamw_of_the_released_code(start, grads, 0.1, 0.5, eps)

    def run(kind: type[torch.optim.Optimizer]) -> np.ndarray:
        parameter = nn.Parameter(torch.tensor(start))
        optimizer = kind(
            [{"params": [parameter]}], lr=0.1, betas=(0.9, 0.98), eps=eps, weight_decay=0.5
        )
        for grad in grads:
            parameter.grad = torch.tensor(grad)
            optimizer.step()
        return parameter.detach().numpy()

    np.testing.assert_allclose(run(OfficialAdamW), expected, rtol=1e-12)
    assert np.abs(run(torch.optim.AdamW) - expected).max() > 1e-4, "the two forms differ here"


def test_official_adamw_leaves_parameters_without_gradient_alone() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = OfficialAdamW([{"params": [parameter], "weight_decay": 0.5}], lr=1.0)
    optimizer.step()
    assert parameter.tolist() == [1.0, 1.0]
    assert not optimizer.state


def test_learning_rate_is_set_times_the_factor_of_the_group() -> None:
    model = Parts()
    groups = parameter_groups(model, OptimSection(), larger_lr_names={"temp"})
    optimizer = build_optimizer(model, OptimSection(), groups)
    assert len(optimizer.param_groups) == 3, "the empty group is left out"
    set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5, 1.0]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0, 0]
    assert all(group["betas"] == (0.9, 0.98) for group in optimizer.param_groups)
