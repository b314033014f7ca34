"""Samples of pictures with phrases about parts of them, where the boxes are not used."""

from __future__ import annotations

from pathlib import Path

from xvlm_core.data import augment
from xvlm_core.data.images import read_picture
from xvlm_core.data.records import Record
from xvlm_core.data.samples import NO_WANTED_REGION, Sample, SampleMaker, SampleProblem


class PhraseSampleMaker(SampleMaker):
    """Makes samples of whole pictures with some of the phrases of their regions. Picklable."""

    def of_phrases(self, record: Record, source: Path | bytes, epoch: int) -> Sample:
        """All of the picture, with up to ``max_regions`` of its phrases, each once.

        The boxes are not looked at: not even whether they are boxes of the picture.

        Args:
            record: which has regions.
            source: its picture: the file, or its bytes.
            epoch: which pass over the data.

        Raises:
            PictureError: the picture cannot be read.
            SampleProblem: the record has no usable phrase.
        """
        settings = self.settings
        rng = augment.generator(self.seed, epoch, record.id, "phrases")
        wanted = [region.text for region in record.regions if region.kind in settings.kinds]
        if not wanted:
            raise SampleProblem(NO_WANTED_REGION if record.regions else "no region")
        phrases = list(dict.fromkeys(wanted))
        drawn = [phrases[i] for i in rng.permutation(len(phrases))[: settings.max_regions]]
        ready = settings.tokenized_regions
        made = [self._text(phrase, rng, mask=False, ready=ready) for phrase in drawn]
        texts = tuple(text for text in made if text is not None)
        if not texts:
            raise SampleProblem("empty text")
        if settings.augment:
            picture = augment.uncropped_picture(
                self._read(source), rng, settings.image_size, allow_flip=self._may_flip(drawn)
            )
        else:
            picture = augment.test_picture(read_picture(source), settings.image_size)
        return Sample(
            record.id,
            picture,
            texts,
            cut=sum(text.cut for text in texts),
            empty=len(made) - len(texts),
        )
