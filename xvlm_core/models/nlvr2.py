"""X-VLM for a statement about two pictures (NLVR2), and its own pre-training.

Suhr et al., "A Corpus for Reasoning About Natural Language Grounded in Photographs", ACL 2019;
X-VLM, section 4.3: the cross encoder is doubled. Its layers come in pairs: the first looks at the
text's first picture, the second at its second; the two share the keys and values of their
cross-attention and nothing else (see :mod:`xvlm_core.models.text`).

Legend: I pictures, P patches, B texts, S width of the picture encoder, D of the text stack,
E joint width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from xvlm_core.models.heads import in_float32, two_layer_head
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.sizes import ModelConfig
from xvlm_core.models.text import TextStates
from xvlm_core.models.xvlm import XVLM


class NLVR2(XVLM):
    """Two pictures, one text; heads ``statement`` (two classes), ``pair_assignment`` (three)."""

    def __init__(self, config: ModelConfig) -> None:
        assert config.text.pictures == 2, "a text of NLVR2 looks at two pictures"
        super().__init__(config)
        if "statement" in config.heads:
            self.cls_head = two_layer_head(config.text.hidden_size, 2)
        if "pair_assignment" in config.heads:
            if "contrastive" not in config.heads:
                self.vision_proj = nn.Linear(config.vision.width, config.embed_dim)
            self.ta_head = nn.Linear(config.text.hidden_size, 3)
        self._initialise(
            nn.ModuleList(
                getattr(self, name)
                for name in ("cls_head", "vision_proj", "ta_head")
                if hasattr(self, name)
            )
        )

    def read(
        self,
        pictures_ICHW: Tensor,
        texts: PackedTexts,
        first_B: Tensor,
        second_B: Tensor,
    ) -> TextStates:
        """States of texts that looked at their two pictures.

        Args:
            pictures_ICHW: normalised pictures, each encoded once.
            texts: B texts.
            first_B: the picture shown first to each text, int64.
            second_B: the one shown second.
        """
        patches_IPS = self.encode_pictures(pictures_ICHW)
        return self.look(self.encode_texts(texts), patches_IPS, first_B, second_B)

    def look(
        self, states: TextStates, patches_IPS: Tensor, first_B: Tensor, second_B: Tensor
    ) -> TextStates:
        """Cross encoder from the states of the texts alone; arguments as in :meth:`read`."""
        return self.text.fuse_pair(states, patches_IPS, first_B, second_B)

    def statement_logits(self, first_BD: Tensor) -> Tensor:
        """Scores ``(B, 2)`` float32 from the states of first tokens; class 1 = it is true."""
        return in_float32(self.cls_head, first_BD)

    def assignment_logits(self, first_BD: Tensor) -> Tensor:
        """Scores ``(B, 3)`` float32: the first picture is the text's, the second is, neither."""
        return in_float32(self.ta_head, first_BD)

    def looks(self, patches_IPS: Tensor) -> Tensor:
        """Unit vectors of whole pictures, ``(I, E)`` float32: pre-training draws others by them."""
        pooled_IS = self.whole(len(patches_IPS)).pool(patches_IPS)
        return F.normalize(in_float32(self.vision_proj, pooled_IS), dim=-1)

    @property
    def larger_lr_names(self) -> frozenset[str]:
        """The heads that no pre-training brings, as released (official.md 3.0)."""
        own = ("cls_head.", "ta_head.")
        return frozenset(name for name, _ in self.named_parameters() if name.startswith(own))
