"""Small shapes for tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xvlm_core.data.batches import PretrainBatch
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.sizes import ModelConfig, TextConfig, VisionConfig

VOCABULARY = 200


def bench_config(**text: object) -> ModelConfig:
    """The shape of the recorded region case: Swin 128 px, 4 x 4 patches, two and two layers."""
    return ModelConfig(
        size="test",
        vision=VisionConfig(
            image_size=128,
            embed_dim=16,
            depths=(2, 2, 2, 2),
            num_heads=(1, 2, 2, 4),
            window_size=4,
            drop_path=0.0,
        ),
        text=TextConfig(
            **{
                "hidden_size": 48,
                "num_layers": 4,
                "fusion_layer": 2,
                "num_heads": 4,
                "intermediate_size": 96,
                "vocab_size": VOCABULARY,
                "max_positions": 64,
                "dropout": 0.0,
                **text,
            }
        ),
        embed_dim=32,
    )


def region_batch(
    lengths: Sequence[int], picture_of_text: Sequence[int], n_pictures: int, side: int = 128
) -> PretrainBatch:
    """A region batch of texts of the given lengths; every text names one patch, one is masked."""
    draw = torch.Generator().manual_seed(3)
    ids = [[2, *torch.randint(5, VOCABULARY, (n - 1,), generator=draw).tolist()] for n in lengths]
    masked_ids = [[*text[:1], 4, *text[2:]] for text in ids]
    masked = PackedTexts.from_lists(masked_ids)
    n = len(lengths)
    patches = (side // 32) ** 2
    mask = torch.zeros(n, patches, dtype=torch.bool)
    mask[torch.arange(n), torch.arange(n) % patches] = True
    return PretrainBatch(
        pictures_ICHW=torch.randn(n_pictures, 3, side, side, generator=draw),
        texts=PackedTexts.from_lists(ids),
        picture_of_text_B=torch.tensor(list(picture_of_text)),
        mask_BP=mask,
        boxes_cxcywh_B4=torch.full((n, 4), 0.4),
        is_region_B=torch.ones(n, dtype=torch.bool),
        keys_B3=None,
        masked=masked,
        masked_token_M=torch.tensor(masked.packing.starts) + 1,
        masked_label_M=torch.tensor([text[1] for text in ids]),
        record_ids=tuple(f"r{i}" for i in range(n_pictures)),
    )
