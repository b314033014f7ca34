"""X-VLM: picture encoder, text encoder, cross encoder and heads.

Zeng, Zhang and Li, "Multi-Grained Vision Language Pre-Training: Aligning Texts with Visual
Concepts", ICML 2022. Figure 2 is this file.

Legend: I pictures, P patches, B texts, V views (see :class:`xvlm_core.models.text.Views`),
D width of the text stack, S width of the picture encoder, E joint width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xvlm_core.models.checkpointing import checkpoint_activations
from xvlm_core.models.heads import in_float32, two_layer_head
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.sizes import ModelConfig
from xvlm_core.models.text import TextEncoder, TextStates, Views
from xvlm_core.models.vision import VisionEncoder


@dataclass(frozen=True)
class Grounded:
    """Answers for B phrases: boxes as fractions of the picture, and how probable a match is."""

    boxes_cxcywh_B4: Tensor
    match_probability_B: Tensor


class XVLM(nn.Module):
    """The model of a shape; which heads it carries is part of the shape."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # what ZeRO 3 may gather layer by layer; a task empties it where a part may skip them
        self.runs_in_every_part: tuple[str, ...] = ("vision", "text.layers")
        heads, text_width = set(config.heads), config.text.hidden_size
        self.vision = VisionEncoder(config.vision)
        self.text = TextEncoder(config.text, config.vision.width, with_lm_head="masked_lm" in heads)
        if "contrastive" in heads:
            self.vision_proj = nn.Linear(config.vision.width, config.embed_dim)
            self.text_proj = nn.Linear(text_width, config.embed_dim)
            self.temp = nn.Parameter(torch.tensor(config.temperature))
        if "matching" in heads:
            self.itm_head = two_layer_head(text_width, 2)
        if "box" in heads:
            self.bbox_head = two_layer_head(text_width, 4)
        self._initialise(self, text=self.text)

    def _initialise(self, part: nn.Module, *, text: nn.Module | None = None) -> None:
        """BERT's N(0, 0.02) in the text stack (official), or Xavier everywhere (tiny models).

        The official projections and heads keep PyTorch's own initialisation.

        Args:
            part: what is to be initialised: the model, or what a subclass added to it.
            text: the text stack in it, if any.
        """
        xavier = self.config.text.init == "xavier"
        for module in (part if xavier else text or nn.Identity()).modules():
            if isinstance(module, nn.Linear):
                if xavier:
                    nn.init.xavier_uniform_(module.weight)
                else:
                    nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
                if module.padding_idx is not None:
                    with torch.no_grad():
                        module.weight[module.padding_idx].zero_()

    def checkpoint_activations(self, on: bool = True) -> None:
        """Keep the inputs of the encoder layers alone for backward, or all activations again."""
        checkpoint_activations(self, on)

    # ------------------------------------------------------------------ encoders

    def encode_pictures(self, pictures_ICHW: Tensor) -> Tensor:
        """Patch tokens ``(I, P, S)`` of normalised pictures."""
        patches_IPS: Tensor = self.vision(pictures_ICHW)
        return patches_IPS

    def encode_texts(self, texts: PackedTexts) -> TextStates:
        """States of the texts alone (layers before the fusion layer)."""
        return self.text.encode(texts)

    def whole(self, n_pictures: int) -> Views:
        """One view a picture that shows all of it."""
        return Views(torch.arange(n_pictures, device=self.device))

    def fuse(
        self, states: TextStates, patches_IPS: Tensor, views: Views, view_of_text: Tensor
    ) -> TextStates:
        """Cross encoder: each text looks at its view. See :meth:`TextEncoder.fuse`."""
        return self.text.fuse(states, patches_IPS, views, view_of_text)

    # ------------------------------------------------------------------ joint space (Eq. 1)

    def picture_features(self, patches_IPS: Tensor, views: Views) -> Tensor:
        """Unit vectors of the pooled tokens of the views, ``(V, E)`` float32."""
        return F.normalize(in_float32(self.vision_proj, views.pool(patches_IPS)), dim=-1)

    def text_features(self, first_BD: Tensor) -> Tensor:
        """Unit vectors of texts from the states of their first tokens, ``(B, E)`` float32."""
        return F.normalize(in_float32(self.text_proj, first_BD), dim=-1)

    def clamp_temperature(self) -> None:
        """Clamp the temperature in place, as the released code does before each use."""
        with torch.no_grad():
            self.temp.clamp_(*self.config.temperature_range)

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """Parameters that stay between two values, and these."""
        return {"temp": self.config.temperature_range} if hasattr(self, "temp") else {}

    # ------------------------------------------------------------------ heads

    def match_logits(self, first_BD: Tensor) -> Tensor:
        """Matching scores ``(B, 2)`` float32; class 1 = the text fits what it looked at (Eq. 4)."""
        return in_float32(self.itm_head, first_BD)

    def boxes(self, first_BD: Tensor) -> Tensor:
        """Boxes ``(B, 4)`` float32: cx, cy, w, h as fractions of the picture (Eq. 6)."""
        return in_float32(self.bbox_head, first_BD).sigmoid()

    # ------------------------------------------------------------------ inference

    def ground(
        self, pictures_ICHW: Tensor, texts: PackedTexts, picture_of_text_B: Tensor
    ) -> Grounded:
        """Where each phrase is in its picture, and how probable it is that it is there at all.

        Each picture is encoded once, whatever the number of its phrases.

        Args:
            pictures_ICHW: normalised pictures.
            texts: B phrases.
            picture_of_text_B: the picture of each phrase, int64.
        """
        patches_IPS = self.encode_pictures(pictures_ICHW)
        states = self.encode_texts(texts)
        views = self.whole(len(pictures_ICHW))
        first_BD = self.fuse(states, patches_IPS, views, picture_of_text_B).first()
        probability_B = self.match_logits(first_BD).softmax(-1)[:, 1]
        return Grounded(self.boxes(first_BD), probability_B)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.text.embeddings.word.weight.device

    @property
    def larger_lr_names(self) -> frozenset[str]:
        """Parameters that neither BERT nor an ImageNet Swin brings: cross-attention and heads.

        77 tensors in the base model (official.md 1.5).
        """
        fresh = ("vision_proj.", "text_proj.", "itm_head.", "bbox_head.", "temp")
        return frozenset(
            name
            for name, _ in self.named_parameters()
            if name.startswith(fresh) or ".cross_attention." in name or ".cross_norm." in name
        )
