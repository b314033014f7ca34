"""Samples of pictures with a caption to be written, and their batches.

The text of a sample is CLS, the prompt, the caption and SEP: the end is learnt, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from xvlm_core.config.schema import Recipe
from xvlm_core.data import augment
from xvlm_core.data.batches import CaptionBatch
from xvlm_core.data.collate import counts_of, pictures_of
from xvlm_core.data.dropped import BadSamples, Dropped
from xvlm_core.data.feeds import StreamFeed, with_one_caption
from xvlm_core.data.records import Record
from xvlm_core.data.samples import BoxXYXY, Sample, SampleMaker, SampleSettings, SampleText
from xvlm_core.data.store import Store
from xvlm_core.data.text import EmptyTextError, pre_caption
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.models.packing import PackedTexts


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> tuple[int, ...]:
    """CLS and the tokens of a prompt: what every caption begins with."""
    return tokenizer.encode(prompt, len(prompt) + 1).ids


@dataclass(frozen=True, kw_only=True)
class CaptionSample(Sample):
    """A picture with a caption: ``texts`` has it alone, with the prompt and SEP.

    Attributes:
        references: cleaned captions of the picture, for a reward.
    """

    references: tuple[str, ...] = ()


class CaptionSampleMaker(SampleMaker):
    """Makes samples of captions to be written. Picklable.

    Args:
        settings: how records become samples.
        tokenizer: of the model.
        seed: of the run.
        prompt: before each caption.
        references: at most so many captions of a picture serve as references, drawn anew in each
            pass; None: all; 0: there are none.
    """

    def __init__(
        self,
        settings: SampleSettings,
        tokenizer: Tokenizer,
        seed: int,
        *,
        prompt: str = "",
        references: int | None = 0,
    ) -> None:
        super().__init__(settings, tokenizer, seed)
        self.prompt = prompt
        self.references = references
        self.given = len(prompt_ids(tokenizer, prompt))

    def of_writing(self, record: Record, source: Path | bytes, epoch: int) -> CaptionSample:
        """The picture with the caption whose turn it is in a pass.

        Args:
            record: which has captions.
            source: its picture: the file, or its bytes.
            epoch: which pass over the data.

        Raises:
            PictureError: the picture cannot be read.
            SampleProblem: no usable caption.
        """
        single = with_one_caption(record, self.seed, epoch)
        sample = self.of_caption(single, source, epoch, mask=False)
        fields = {field.name: getattr(sample, field.name) for field in dataclasses.fields(sample)}
        return CaptionSample(**fields, references=self._references(record, epoch))

    def _references(self, record: Record, epoch: int) -> tuple[str, ...]:
        if self.references == 0:
            return ()
        rng = augment.generator(self.seed, epoch, record.id, "references")
        cleaned = cleaned_captions(record.captions, self.settings.max_words)
        drawn = rng.permutation(len(cleaned))[: self.references]
        return tuple(cleaned[int(i)] for i in drawn)

    def _text(
        self,
        text: str,
        rng: np.random.Generator,
        box_xyxy_px: BoxXYXY | None = None,
        *,
        mask: bool = True,
        ready: bool = False,
    ) -> SampleText | None:
        words = self._words(text, ready=ready)
        encoded = self.tokenizer.encode(self.prompt + words, self.settings.max_tokens - 1)
        if not words or len(encoded.ids) <= self.given:
            return None
        return SampleText(words, (*encoded.ids, self.tokenizer.sep_id), None, cut=encoded.cut)


def cleaned_captions(captions: Sequence[str], max_words: int) -> list[str]:
    """As the model reads them; those of which nothing is left are left out."""
    found = []
    for caption in captions:
        try:
            found.append(pre_caption(caption, max_words))
        except EmptyTextError:
            continue
    return found


def caption_batch(
    samples: Sequence[Sample], *, given: int, dropped: Dropped | None = None
) -> CaptionBatch:
    """One batch of pictures with a caption each.

    Args:
        samples: at least one, all of captions to be written.
        given: tokens at the beginning of each text that are not learnt.
        dropped: samples left out so far.
    """
    made = [sample for sample in samples if isinstance(sample, CaptionSample)]
    assert len(made) == len(samples), "samples of captions to be written"
    return CaptionBatch(
        pictures_ICHW=pictures_of(made),
        texts=PackedTexts.from_lists([sample.texts[0].ids for sample in made]),
        picture_of_text_B=torch.arange(len(made)),
        given=given,
        references=tuple(sample.references for sample in made),
        record_ids=tuple(sample.record_id for sample in made),
        dropped=dict(dropped.reasons) if dropped else {},
        bad=dropped.bad if dropped else BadSamples(),
        counts=counts_of(made),
    )


class CaptionWritingFeed(StreamFeed):
    """Pictures with a caption each, the next one in each pass: see ``with_one_caption``."""

    def __init__(self, recipe: Recipe, stores: Sequence[Store], maker: CaptionSampleMaker) -> None:
        images = recipe.data.images
        assert images is not None, "the task reads data.images"
        super().__init__(recipe, stores, "images", images.batch_size)
        self.maker = maker

    def batches(self, step: int, part: int = 0) -> tuple[CaptionBatch, ...]:
        """A part of the update of step 1, 2, ..."""
        samples, dropped = self.stream.samples(step, part, self.maker.of_writing)
        return (caption_batch(samples, given=self.maker.given, dropped=dropped),)
