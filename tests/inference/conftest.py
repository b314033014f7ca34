"""A small random model that answers differently for each picture and phrase."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xvlm_core.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from xvlm_core.inference.predictor import Predictor
from xvlm_core.models.sizes import ModelConfig, TextConfig, VisionConfig
from xvlm_core.models.xvlm import XVLM
from xvlm_core.weights.folder import ModelInfo, save_model_folder

WORDS = ("red", "blue", "green", "circle", "square", "left", "of", "the", "large", "##s", "s")

MakeModel = Callable[..., Path]


def _config(heads: tuple[str, ...]) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "size": "tiny",
            "vision": VisionConfig(
                kind="vit",
                image_size=64,
                patch_size=16,
                embed_dim=32,
                depths=(1,),
                num_heads=(2,),
                drop_path=0.0,
                conv_stem=True,
                sine_positions=True,
            ),
            "text": TextConfig(
                hidden_size=32,
                num_layers=2,
                fusion_layer=1,
                num_heads=2,
                intermediate_size=64,
                vocab_size=len(SPECIAL_TOKENS) + len(WORDS),
                max_positions=32,
                dropout=0.0,
                norm_first=True,
                init="xavier",
            ),
            "embed_dim": 16,
            "heads": heads,
        }
    )


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """Writes a model folder: ``make_model(folder, task=..., heads=...)``."""

    def make(
        folder: Path,
        *,
        task: str = "grounding",
        heads: tuple[str, ...] = ("contrastive", "matching", "masked_lm", "box"),
    ) -> Path:
        torch.manual_seed(11)
        config = _config(heads)
        model = XVLM(config)
        with torch.no_grad():
            model.text.embeddings.word.weight.normal_(std=1.0)
            for name in ("bbox_head", "itm_head"):
                if hasattr(model, name):
                    getattr(model, name)[3].weight.mul_(4)
        tokenizer = Tokenizer.from_vocab([*SPECIAL_TOKENS, *WORDS])
        info = ModelInfo(task=task, max_words=4, max_tokens=6, config=config)
        save_model_folder(folder, model, tokenizer, info)
        return folder

    return make


@pytest.fixture(scope="session")
def model_folder(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def predictor(model_folder: Path) -> Predictor:
    return Predictor.from_folder(model_folder, device="cpu")


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth random picture: resizing keeps what is in it."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)
