"""X-VLM for captions: the whole text stack, used from left to right, writes about the picture.

X-VLM, section 4.3. The layers and the language-model head are those of pre-training; a token sees
the tokens before it only, in the text layers as well as in the cross layers.

Legend: I pictures, B captions, N tokens of all captions, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from xvlm_core.models.decoding import PictureMemory, Speaker
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.sizes import ModelConfig
from xvlm_core.models.text import TextStates
from xvlm_core.models.xvlm import XVLM


class Captioner(XVLM):
    """Picture encoder, and the text stack as a causal decoder."""

    def __init__(self, config: ModelConfig) -> None:
        assert config.text.causal, "a captioner sees the tokens before only"
        super().__init__(config)

    def caption_logits(
        self, patches_IPS: Tensor, captions: PackedTexts, picture_of_caption_B: Tensor
    ) -> Tensor:
        """Scores of the token that follows each token of the captions, ``(N, V)`` float32.

        Args:
            patches_IPS: what ``encode_pictures`` gave.
            captions: B captions, CLS in front; rows of the result lie as they are packed.
            picture_of_caption_B: the picture of each caption, int64.
        """
        states = self.caption_states(patches_IPS, captions, picture_of_caption_B)
        return self.text.predict_tokens(states.hidden_ND)

    def caption_states(
        self, patches_IPS: Tensor, captions: PackedTexts, picture_of_caption_B: Tensor
    ) -> TextStates:
        """States that predict, before the language-model head: for some of the tokens only."""
        views = self.whole(len(patches_IPS))
        return self.fuse(self.encode_texts(captions), patches_IPS, views, picture_of_caption_B)

    def speaker(self, patches_IPS: Tensor) -> Speaker:
        """Writes about the pictures token by token, for searches and samples."""
        return Speaker(self.text, PictureMemory(patches_IPS))

    @property
    def larger_lr_names(self) -> frozenset[str]:
        """None: pre-training brings all of it (official.md 3.0)."""
        return frozenset()
