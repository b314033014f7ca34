"""The second stage of captioning: draw captions, reward them, learn from the difference.

The objective is :mod:`xvlm_core.objectives.self_critical`. Captions are drawn without a gradient by
a cached search; then all of them are read once, in parallel, with one. The released code keeps the
graph of the search instead: there drop-out is the same in both, here it is drawn anew. Everything
else is as released (official.md 3.6): drop-out is on while samples are drawn, and off for the
greedy baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xvlm_core.config.schema import SelfCriticalSection
from xvlm_core.data.batches import CaptionBatch
from xvlm_core.data.text import EmptyTextError, pre_caption
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.inference.generate import Lengths, Written, greedy, sample
from xvlm_core.inference.writing import text_of
from xvlm_core.models.captioner import Captioner
from xvlm_core.models.packing import PackedTexts
from xvlm_core.objectives.language_modeling import next_tokens, token_log_probabilities
from xvlm_core.objectives.self_critical import (
    baseline_of_others,
    mean_log_probabilities,
    self_critical_loss,
)

Reward = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[float]]
"""Of captions, each with the references of its picture: how good each of them is."""


@dataclass(frozen=True)
class Update:
    """What came of one part of an update.

    Attributes:
        loss: a float32 scalar.
        counts: are added up.
        gauges: mean reward and mean baseline.
    """

    loss: Tensor
    counts: dict[str, int] = field(default_factory=dict)
    gauges: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Judged:
    """Captions that were drawn, those of a picture next to each other, and their rewards."""

    texts: PackedTexts
    reward_B: Tensor
    baseline_B: Tensor
    without_end: int = 0


class SelfCritical:
    """Draws, rewards and learns.

    Args:
        settings: how many captions, and what they are compared with.
        reward: of captions.
        tokenizer: of the model.
        prompt: CLS and the tokens of the prompt.
        lengths: when a caption ends.
        max_words: words of a caption that are compared.
    """

    def __init__(
        self,
        settings: SelfCriticalSection,
        reward: Reward,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        lengths: Lengths,
        max_words: int,
    ) -> None:
        self.settings = settings
        self.reward = reward
        self.tokenizer = tokenizer
        self.prompt = tuple(prompt)
        self.lengths = lengths
        self.max_words = max_words

    def update(self, model: Captioner, batch: CaptionBatch, generator: torch.Generator) -> Update:
        """The loss of a part of an update.

        Args:
            model: in training mode.
            batch: pictures with references.
            generator: of the draws.
        """
        patches_IPS = model.encode_pictures(batch.pictures_ICHW)
        if batch.drawn is None:
            judged = self._draw(model, patches_IPS.detach(), batch, generator)
        else:
            zeros_B = torch.zeros(batch.drawn.packing.n_texts)
            judged = _Judged(batch.drawn, zeros_B, zeros_B)
        n_texts = judged.texts.packing.n_texts
        picture_B = torch.arange(batch.n_pictures, device=patches_IPS.device)
        picture_B = picture_B.repeat_interleave(n_texts // batch.n_pictures)
        states = model.caption_states(patches_IPS, judged.texts, picture_B)
        tokens = next_tokens(judged.texts, len(self.prompt))
        logits_MV = model.text.predict_tokens(states.hidden_ND[tokens.place_M])
        logprob_B = mean_log_probabilities(
            token_log_probabilities(logits_MV, tokens.label_M), tokens.text_M, n_texts
        )
        return Update(
            self_critical_loss(logprob_B, judged.reward_B, judged.baseline_B),
            {"captions_without_end": judged.without_end} if judged.without_end else {},
            {"reward": judged.reward_B.mean(), "baseline": judged.baseline_B.mean()},
        )

    @torch.no_grad()
    def _draw(
        self,
        model: Captioner,
        patches_IPS: Tensor,
        batch: CaptionBatch,
        generator: torch.Generator,
    ) -> _Judged:
        n, end = self.settings.samples, self.lengths.end_id
        speaker = model.speaker(patches_IPS)
        drawn = sample(speaker, self.prompt, self.lengths, generator, n=n)
        texts = [one for row in drawn for one in row]
        reward_In = self._rewards(drawn, batch.references).to(patches_IPS.device)
        if self.settings.baseline == "others":
            baseline_In = baseline_of_others(reward_In)
        else:
            best = [[one] for one in self._greedy(model, batch.pictures_ICHW)]
            baseline_In = self._rewards(best, batch.references).to(reward_In).expand(-1, n)
        # before PyTorch 2.11 autocast keeps what it cast without a gradient, and what is computed
        # with one from it would not reach the weights
        torch.clear_autocast_cache()
        packed = PackedTexts.from_lists([one.drawn for one in texts])
        return _Judged(
            packed.to(patches_IPS.device),
            reward_In.reshape(-1),
            baseline_In.reshape(-1),
            sum(one.drawn[-1] != end for one in texts),
        )

    def _greedy(self, model: Captioner, pictures_ICHW: Tensor) -> list[Written]:
        """The most probable captions, without drop-out."""
        was_training = model.training
        model.eval()
        try:
            speaker = model.speaker(model.encode_pictures(pictures_ICHW))
            return greedy(speaker, self.prompt, self.lengths)
        finally:
            model.train(was_training)

    def _rewards(
        self, rows: Sequence[Sequence[Written]], references: Sequence[Sequence[str]]
    ) -> Tensor:
        """Of as many captions of each picture, ``(I, n)`` float32, on the CPU."""
        captions = [self.words_of(one) for row in rows for one in row]
        compared = [own for row, own in zip(rows, references, strict=True) for _ in range(len(row))]
        found = torch.tensor(list(self.reward(captions, compared)), dtype=torch.float32)
        return found.view(len(rows), -1)

    def words_of(self, written: Written) -> str:
        """A caption as it is compared: cleaned as references are; empty if nothing is left."""
        text = text_of(written, self.tokenizer, len(self.prompt))
        try:
            return pre_caption(text, self.max_words)
        except EmptyTextError:
            return ""
