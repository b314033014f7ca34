"""X-VLM for questions: the cross encoder reads the question, a decoder writes the answer.

X-VLM, section 4.3, after Li et al., "Align before Fuse", NeurIPS 2021. Every layer of the decoder
attends to the states of the question, which hold what the picture showed; it has embeddings and a
language-model head of its own.

Legend: I pictures, Q questions, A answers, N tokens of all answers, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.sizes import ModelConfig
from xvlm_core.models.text import TextEncoder, TextStates
from xvlm_core.models.xvlm import XVLM


class VQA(XVLM):
    """Picture encoder, text and cross encoder, answer decoder."""

    def __init__(self, config: ModelConfig) -> None:
        assert config.decoder_layers, "VQA needs an answer decoder"
        super().__init__(config)
        width = config.text.hidden_size
        self.decoder = TextEncoder(config.decoder, width, with_lm_head=True)
        self._initialise(self.decoder, text=self.decoder)

    def read(
        self, pictures_ICHW: Tensor, questions: PackedTexts, picture_of_question_Q: Tensor
    ) -> TextStates:
        """States of questions that looked at their pictures; each picture is encoded once."""
        patches_IPS = self.encode_pictures(pictures_ICHW)
        states = self.encode_texts(questions)
        return self.fuse(states, patches_IPS, self.whole(len(patches_IPS)), picture_of_question_Q)

    def answer_states(
        self, questions: TextStates, answers: PackedTexts, question_of_answer_A: Tensor
    ) -> TextStates:
        """States of the decoder, from which the next tokens follow.

        Args:
            questions: what :meth:`read` gave.
            answers: A answers, CLS in front.
            question_of_answer_A: the question of each answer, int64.
        """
        states = self.decoder.encode(answers)
        return self.decoder.fuse_texts(states, questions, question_of_answer_A)

    def answer_logits(
        self, questions: TextStates, answers: PackedTexts, question_of_answer_A: Tensor
    ) -> Tensor:
        """Scores of the token that follows each token of the answers, ``(N, V)`` float32.

        Args:
            questions: what :meth:`read` gave.
            answers: A answers, CLS in front; rows of the result lie as they are packed.
            question_of_answer_A: the question of each answer, int64.
        """
        states = self.answer_states(questions, answers, question_of_answer_A)
        return self.decoder.predict_tokens(states.hidden_ND)

    @property
    def larger_lr_names(self) -> frozenset[str]:
        """What no pre-training brings: keys and values of the decoder's cross-attention.

        They look at texts, those of pre-training at pictures: 24 tensors, where the two differ in
        width (official.md 3.0, 3.2); none where they do not.
        """
        if self.config.vision.width == self.config.text.hidden_size:
            return frozenset()
        return frozenset(
            name
            for name, _ in self.decoder.named_parameters(prefix="decoder")
            if ".cross_attention.key." in name or ".cross_attention.value." in name
        )
