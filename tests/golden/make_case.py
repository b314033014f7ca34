"""Record the small cases of this repository (``python -m tests.golden.make_case``).

They were recorded from a model that reproduces every tensor of the cases recorded from the
released code, and guard the same where those are absent. Record anew only when a shape changes,
and only from code that passes ``pytest tests/golden --golden-root DIR`` on the released cases.
"""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import OWN_CASES
from tests.golden.case import Case, model_config
from tests.golden.step import reproduce
from xvlm_core.models.xvlm import XVLM
from xvlm_core.weights.official import official_name, to_official

CONFIG = {
    "swin": {
        "image_res": 64,
        "patch_size": 4,
        "window_size": 4,
        "embed_dim": 8,
        "depths": [2, 2, 2],
        "num_heads": [1, 2, 2],
        "mlp_ratio": 2,
    },
    "bert": {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "fusion_layer": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "vocab_size": 60,
        "max_position_embeddings": 16,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    },
    "embed_dim": 12,
    "temp": 0.083,
}
GRADIENTS = {
    "grad_rel_bias": "vision.backbone.layers.1.blocks.1.attn.relative_position_bias_table",
    "grad_patch_embed": "vision.backbone.patch_embed.proj.weight",
    "grad_downsample": "vision.backbone.layers.1.downsample.reduction.weight",
    "grad_word_embeddings": "text.embeddings.word.weight",
    "grad_cross_value": "text.layers.3.cross_attention.value.weight",
    "grad_vision_proj": "vision_proj.weight",
    "grad_temp": "temp",
}


def inputs(*, regions: bool) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(11 + regions)
    picture_of_text = [0, 0, 1, 2, 2] if regions else [0, 1, 2, 3]
    n, length = len(picture_of_text), 9
    lengths = torch.randint(3, length + 1, (n,), generator=draw)
    atts = (torch.arange(length) < lengths[:, None]).long()
    ids = torch.randint(5, 60, (n, length), generator=draw) * atts
    ids[:, 0] = 2
    masked = ids.clone()
    masked[:, 1] = 4
    position = torch.zeros(n, 2, dtype=torch.int64)
    position[:, 0] = 1
    labels = torch.full((n, 2), -100)
    labels[:, 0] = ids[:, 1]
    io = {
        "image": torch.randn(max(picture_of_text) + 1, 3, 64, 64, generator=draw),
        "text_ids": ids,
        "text_atts": atts,
        "text_ids_masked": masked,
        "masked_pos": position,
        "masked_ids": labels,
        "itm_image_neg_idx": (torch.arange(n) + 1) % n,
        "itm_text_neg_idx": (torch.arange(n) + 2) % n,
    }
    if regions:
        mask = torch.rand(n, 17, generator=draw) < 0.4
        mask[:, :2] = True
        mask[2] = True
        io |= {
            "idx_to_group_img": torch.tensor(picture_of_text),
            "is_image": torch.tensor([0, 0, 1, 0, 0]),
            "image_atts": mask.long(),
            "target_bbox": torch.rand(n, 4, generator=draw) * 0.4 + 0.2,
        }
    return io


def record(name: str) -> None:
    config = model_config(CONFIG)
    torch.manual_seed(1)
    model = XVLM(config).eval()
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                std = 1.5 / parameter[0].numel() ** 0.5
                parameter.normal_(0, std, generator=draw)
            elif parameter_name != "temp":
                one = "norm" in parameter_name and parameter_name.endswith("weight")
                parameter.normal_(1.0 if one else 0.0, 0.2, generator=draw)
    folder = OWN_CASES / name
    folder.mkdir(parents=True, exist_ok=True)
    io = inputs(regions=name == "pretrain_region")
    gradients = GRADIENTS | (
        {"grad_bbox_head_out": "bbox_head.3.weight"} if name == "pretrain_region" else {}
    )
    meta = {
        "case": name,
        "config": CONFIG,
        "gradients": {key: official_name(value) for key, value in gradients.items()},
        "made_with": {"script": "tests/golden/make_case.py", "torch": torch.__version__},
    }
    (folder / "case.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    official = {
        k: v.clone().contiguous() for k, v in to_official(model.state_dict(), config).items()
    }
    save_file(official, folder / "weights.safetensors")
    made = reproduce(Case(folder, meta, io, model))
    tensors = io | {name: item.value.contiguous() for name, item in made.items()}
    save_file({name: t.clone() for name, t in tensors.items()}, folder / "io.safetensors")


if __name__ == "__main__":
    for case in ("pretrain_image", "pretrain_region"):
        record(case)
