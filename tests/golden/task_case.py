"""The recorded cases of the task models: which shape each is, and its model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tests.golden.case import assert_close, model_config
from xvlm_core.models.build import build_model
from xvlm_core.models.sizes import ModelConfig
from xvlm_core.models.xvlm import XVLM
from xvlm_core.weights.official import from_official
from xvlm_core.weights.official_shape import TASKS

TASK_OF_CASE = {
    "pretrain_image": "pretrain",
    "pretrain_region": "pretrain",
    "retrieval": "retrieval",
    "grounding_bbox": "grounding",
    "grounding_weak": "weak_grounding",
    "nlvr": "nlvr2",
    "nlvr_pretrain": "nlvr2_pretrain",
    "vqa": "vqa",
    "caption": "captioning",
}


def shape_of_case(case: str, recorded: dict[str, Any]) -> ModelConfig:
    """The shape that the record itself states."""
    task = TASKS[TASK_OF_CASE[case]]
    tree = model_config(recorded, task.heads if task.kind == "plain" else ()).model_dump()
    tree["heads"] = task.heads
    tree["text"] |= {
        "pictures": 2 if task.kind == "pairs" else 1,
        "causal": task.kind == "causal",
    }
    if task.kind == "decoder":
        tree["decoder_layers"] = recorded["decoder"]["num_hidden_layers"]
    return ModelConfig.model_validate(tree)


@dataclass(frozen=True)
class TaskCase:
    meta: dict[str, Any]
    io: dict[str, Tensor]
    model: XVLM

    @classmethod
    def read(cls, folder: Path) -> TaskCase:
        meta = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        model = build_model(shape_of_case(folder.name, meta["config"])).eval()
        converted = from_official(load_file(folder / "weights.safetensors"), model.config)
        model.load_state_dict(converted.state)
        return cls(meta, load_file(folder / "io.safetensors"), model)

    def equal(self, name: str, value: Tensor, where: Tensor | None = None) -> None:
        """The recorded tensor is reproduced (where: real tokens only)."""
        assert_close(name, value, self.io[name], where)
