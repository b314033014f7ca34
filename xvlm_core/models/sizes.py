"""Model shapes and the named sizes ``base``, ``small`` and ``tiny``. Imports no torch.

``base`` is the released X-VLM (Swin-B, BERT-base as 6 text + 6 cross layers, 215.6 M parameters).
``small`` keeps its architecture at a size that trains on one modest GPU. ``tiny`` trains in
minutes on two CPU cores; it differs from the official architecture in named options only
(pre-norm, fixed sine positions, Xavier initialisation), all off in ``base`` and ``small``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Head = Literal["contrastive", "matching", "masked_lm", "box", "statement", "pair_assignment"]
# those of pre-training
ALL_HEADS: tuple[Head, ...] = ("contrastive", "matching", "masked_lm", "box")
# those of a text that looks at two pictures: NLVR2, and its own pre-training
PAIR_HEADS: tuple[Head, ...] = ("statement", "pair_assignment")


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VisionConfig(_Shape):
    """Shape of the picture encoder (built by timm)."""

    kind: Literal["swin", "vit"] = Field("swin", description="architecture, from timm")
    image_size: int = Field(224, gt=0, description="side of the square input, pixels")
    patch_size: int = Field(4, gt=0, description="side of the patches that enter, pixels")
    embed_dim: int = Field(128, gt=0, description="width of the first stage (swin) or all (vit)")
    depths: tuple[int, ...] = Field((2, 2, 18, 2), description="blocks a stage (vit: one entry)")
    num_heads: tuple[int, ...] = Field((4, 8, 16, 32), description="heads a stage")
    window_size: int = Field(7, gt=0, description="Swin window, patches")
    mlp_ratio: float = Field(4.0, gt=0)
    drop_path: float = Field(0.1, ge=0, lt=1, description="stochastic depth, linear over blocks")
    conv_stem: bool = Field(False, description="vit: four strided convolutions instead of patches")
    sine_positions: bool = Field(
        False, description="add fixed sine positions to the input (vit) and to the output tokens"
    )

    @model_validator(mode="after")
    def _shapes_agree(self) -> VisionConfig:
        if len(self.depths) != len(self.num_heads):
            raise ValueError("depths and num_heads must have one entry for each stage")
        if self.kind == "vit" and len(self.depths) != 1:
            raise ValueError("a vit has one stage: one entry in depths and in num_heads")
        if self.image_size % self.stride:
            raise ValueError(f"image_size must be a multiple of {self.stride}")
        for stage, heads in enumerate(self.num_heads):
            if heads < 1 or (self.embed_dim << stage) % heads:
                raise ValueError(f"{heads} heads cannot share a width of {self.embed_dim << stage}")
        if any(depth < 1 for depth in self.depths):
            raise ValueError("a stage has at least one block")
        if self.conv_stem and (self.kind != "vit" or self.patch_size != 16):
            raise ValueError("conv_stem is for a vit with patch_size 16")
        if self.sine_positions and (self.width % 4 or self.width < 8):
            raise ValueError("sine_positions need a width of 8 or more, a multiple of 4")
        return self

    @property
    def stride(self) -> int:
        """Pixels between neighbouring output patches."""
        return self.patch_size << (len(self.depths) - 1)

    @property
    def grid(self) -> int:
        """Output patches a side."""
        return self.image_size // self.stride

    @property
    def width(self) -> int:
        """Width of an output patch token."""
        return self.embed_dim << (len(self.depths) - 1)


class TextConfig(_Shape):
    """Shape of the text encoder and the cross encoder: one BERT stack."""

    hidden_size: int = Field(768, gt=0)
    num_layers: int = Field(12, gt=0, description="text layers + cross layers")
    fusion_layer: int = Field(6, ge=0, description="first layer that cross-attends to the picture")
    num_heads: int = Field(12, gt=0)
    intermediate_size: int = Field(3072, gt=0)
    vocab_size: int = Field(30522, gt=0)
    max_positions: int = Field(512, gt=0)
    type_vocab_size: int = Field(2, gt=0)
    layer_norm_eps: float = Field(1e-12, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1, description="hidden and attention drop-out")
    norm_first: bool = Field(False, description="pre-norm layers (BERT is post-norm)")
    init: Literal["bert", "xavier"] = Field("bert", description="initialisation of the matrices")
    pictures: Literal[1, 2] = Field(
        1, description="pictures a text looks at; 2: the cross layers take turns (NLVR2)"
    )
    causal: bool = Field(False, description="a token sees the tokens before it only (captioning)")

    @model_validator(mode="after")
    def _shapes_agree(self) -> TextConfig:
        if (self.num_layers - self.fusion_layer) % self.pictures:
            raise ValueError("with pictures=2 the number of cross layers must be even")
        if self.hidden_size % self.num_heads:
            raise ValueError("hidden_size must be a multiple of num_heads")
        if self.fusion_layer >= self.num_layers:
            raise ValueError("fusion_layer must be below num_layers")
        return self


class ModelConfig(_Shape):
    """Shape of the whole model; written to ``config.json`` of every model folder."""

    size: str = Field("base", description="the named size this shape started from")
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    embed_dim: int = Field(256, gt=0, description="width of the joint space")
    temperature: float = Field(0.07, gt=0, description="initial contrastive temperature")
    temperature_range: tuple[float, float] = Field(
        (0.001, 0.5), description="the temperature is clamped to this range"
    )
    heads: tuple[Head, ...] = Field(ALL_HEADS, description="heads the model carries")
    decoder_layers: int = Field(0, ge=0, description="layers of the answer decoder (VQA); 0: none")

    @model_validator(mode="after")
    def _temperature_in_range(self) -> ModelConfig:
        low, high = self.temperature_range
        if not 0 < low <= self.temperature <= high:
            raise ValueError("temperature must lie in temperature_range, above 0")
        return self

    @property
    def decoder(self) -> TextConfig:
        """Shape of the answer decoder: causal, cross-attention in every layer."""
        return self.text.model_copy(
            update={
                "num_layers": self.decoder_layers,
                "fusion_layer": 0,
                "pictures": 1,
                "causal": True,
            }
        )

    @model_validator(mode="after")
    def _one_kind(self) -> ModelConfig:
        """At most one of: two pictures, a causal stack, an answer decoder."""
        pairs = self.text.pictures == 2
        if pairs + self.text.causal + bool(self.decoder_layers) > 1:
            raise ValueError("of text.pictures=2, text.causal and decoder_layers only one is known")
        if not pairs and (found := [head for head in self.heads if head in PAIR_HEADS]):
            raise ValueError(f"the head {found[0]} needs text.pictures=2")
        if self.text.causal and "masked_lm" not in self.heads:
            raise ValueError("text.causal needs the head masked_lm: it is what predicts the words")
        return self


def base() -> ModelConfig:
    """X-VLM base: Swin-B/224 and BERT-base, 215,637,241 parameters with every head."""
    return ModelConfig(size="base")


def small() -> ModelConfig:
    """Swin-T/224 and a 4 + 4 layer text stack of width 384: about a fifth of ``base``."""
    return ModelConfig(
        size="small",
        vision=VisionConfig(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
        text=TextConfig(
            hidden_size=384, num_layers=8, fusion_layer=4, num_heads=6, intermediate_size=1536
        ),
    )


def tiny() -> ModelConfig:
    """Minutes on two CPU cores: ViT with a convolutional stem, 8 x 8 tokens at 128 px, width 64."""
    return ModelConfig(
        size="tiny",
        vision=VisionConfig(
            kind="vit",
            image_size=128,
            patch_size=16,
            embed_dim=64,
            depths=(2,),
            num_heads=(4,),
            drop_path=0.0,
            conv_stem=True,
            sine_positions=True,
        ),
        text=TextConfig(
            hidden_size=64,
            num_layers=4,
            fusion_layer=2,
            num_heads=4,
            intermediate_size=256,
            max_positions=64,
            dropout=0.0,
            norm_first=True,
            init="xavier",
        ),
        embed_dim=64,
    )


SIZES: dict[str, Callable[[], ModelConfig]] = {"base": base, "small": small, "tiny": tiny}
