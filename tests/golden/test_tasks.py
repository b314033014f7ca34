"""Recorded outputs of the task models. Padding is not computed: real tokens are compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.golden.case import assert_close
from tests.golden.task_case import TaskCase
from tests.golden.task_outputs import INPUTS, REPRODUCE


@pytest.fixture(params=list(REPRODUCE))
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def check(folder: Path, case: str) -> None:
    recorded = TaskCase.read(folder)
    with torch.no_grad():
        made = REPRODUCE[case](recorded)
    names = set(recorded.io) - INPUTS[case]
    assert names == set(made), "recorded tensors that nothing reproduces"
    for name in sorted(names):
        assert_close(name, made[name].value, recorded.io[name], made[name].where)


def test_recorded_outputs_of_the_released_code_are_reproduced(
    case: str, golden_root: Path | None
) -> None:
    if golden_root is None or not (golden_root / case / "io.safetensors").is_file():
        pytest.skip("no golden cases here")
    check(golden_root / case, case)
