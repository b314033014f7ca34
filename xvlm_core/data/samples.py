"""Samples: what a record becomes before it is put into a batch (official.md 2.4, 2.6-2.8).

A sample is a pure function of (record, settings, seed, epoch): augmentation, choice of texts and
masking draw from a generator made from the record's id, so it is the same whichever worker makes
it and in whatever order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xvlm_core.data import augment
from xvlm_core.data.boxes import (
    CarriedBoxes,
    Crop,
    box_problem,
    carry_boxes,
    crop_with_boxes,
    patch_mask,
)
from xvlm_core.data.images import read_picture
from xvlm_core.data.masking import MaskedText, mask_tokens
from xvlm_core.data.pixels import read_pixels
from xvlm_core.data.records import REGION_KINDS, Record, Region, RegionKind
from xvlm_core.data.text import EmptyTextError, names_a_side, pre_caption
from xvlm_core.data.tokenizer import Tokenizer

BoxXYXY = tuple[float, float, float, float]

NO_WANTED_REGION = "no region of the wanted kinds"
"""The record has regions, but none of ``data.regions.kinds``."""

SIZE_MISMATCH = "size mismatch"
"""The picture is not of the size that its record says: boxes would be in the wrong place."""


@dataclass(frozen=True)
class SampleSettings:
    """How records become samples.

    Attributes:
        image_size: side of the picture that the model sees, pixels.
        grid: patches a side.
        max_words: words kept by the cleaning.
        max_tokens: tokens kept, CLS included.
        mask_prob, max_masks, skipgram_prb, skipgram_size: masking (official.md 2.4).
        max_regions: texts a picture (a caption takes one place).
        kinds: regions of other kinds are left out, as if the record did not have them.
        caption: give one place to a caption, if there is any.
        min_inside: share of a box that must be inside the crop.
        absent: texts a picture that are known not to be in it.
        augment: random crop, flip and RandAugment; else the whole picture, resized.
        crop_scale: fraction of the area of a whole picture that its random crop keeps.
        careful_flip: no mirroring where a text names a side.
        tokenized_regions: texts of region samples are word pieces with spaces between: neither
            cleaned nor lower-cased (the released 16M regions).
        compat_official: reproduce the released code's habits (official.md 6).
    """

    image_size: int
    grid: int
    max_words: int
    max_tokens: int
    mask_prob: float = 0.25
    max_masks: int = 8
    skipgram_prb: float = 0.2
    skipgram_size: int = 3
    max_regions: int = 5
    kinds: tuple[RegionKind, ...] = REGION_KINDS
    caption: bool = True
    min_inside: float = 0.5
    absent: int = 0
    augment: bool = True
    crop_scale: tuple[float, float] = (0.2, 1.0)
    careful_flip: bool = True
    tokenized_regions: bool = False
    compat_official: bool = False


class SampleProblem(ValueError):
    """Why a record gives no sample; ``reason`` is counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class SampleText:
    """One text of a sample.

    Attributes:
        words: the cleaned text (equal texts are no negatives of each other).
        ids: its tokens, CLS first.
        masked: the same with tokens to predict; None where masking was not asked for.
        box_xyxy_px: in the resized picture; None: about the whole picture.
        mask_P: the patches that it is about, bool; None: all.
        cut: tokens that did not fit.
        others_xyxy_px: further boxes that the text fits as well (an object label names every
            thing of its kind), in the resized picture.
    """

    words: str
    ids: tuple[int, ...]
    masked: MaskedText | None
    box_xyxy_px: BoxXYXY | None = None
    mask_P: NDArray[np.bool_] | None = None
    cut: int = 0
    others_xyxy_px: tuple[BoxXYXY, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One picture and its texts.

    Attributes:
        record_id: where it comes from.
        picture: uint8 ``(R, R, 3)``.
        texts: about the whole or a part.
        absent: texts known not to be in the picture.
        own_words: every cleaned text of the record: none may serve as its negative.
        cut: tokens of the texts that did not fit into ``max_tokens``.
        empty: texts that were drawn although nothing is left of them after cleaning.
        picture_id: tells pictures apart where a picture may have several records.
    """

    record_id: str
    picture: NDArray[np.uint8]
    texts: tuple[SampleText, ...]
    absent: tuple[SampleText, ...] = ()
    own_words: frozenset[str] = frozenset()
    cut: int = 0
    empty: int = 0
    picture_id: str = ""


class SampleMaker:
    """Makes samples of one kind for one tokenizer. Picklable."""

    def __init__(self, settings: SampleSettings, tokenizer: Tokenizer, seed: int) -> None:
        self.settings = settings
        self.tokenizer = tokenizer
        self.seed = seed

    # ------------------------------------------------------------------ whole pictures

    def of_caption(
        self, record: Record, source: Path | bytes, epoch: int, *, mask: bool = True
    ) -> Sample:
        """One caption of the whole picture, with the augmentation of picture-text batches.

        Args:
            record: which has captions.
            source: its picture: the file, or its bytes.
            epoch: which pass over the data.
            mask: draw tokens to predict.

        Raises:
            PictureError: the picture cannot be read.
            SampleProblem: no usable caption.
        """
        rng = augment.generator(self.seed, epoch, record.id, "caption")
        if not record.captions:
            raise SampleProblem("no caption")
        caption = record.captions[int(rng.integers(len(record.captions)))]
        text = self._text(caption, rng, mask=mask)
        if text is None:
            raise SampleProblem("empty text")
        if self.settings.augment:
            image = self._read(source)
            picture = augment.pretrain_picture(
                image,
                rng,
                self.settings.image_size,
                scale=self.settings.crop_scale,
                allow_flip=self._may_flip([caption]),
            )
        else:
            picture = augment.test_picture(read_picture(source), self.settings.image_size)
        return Sample(record.id, picture, (text,), cut=text.cut)

    # ------------------------------------------------------------------ regions

    def of_regions(
        self,
        record: Record,
        source: Path | bytes,
        epoch: int,
        *,
        mask: bool = True,
        whole_first: bool = False,
    ) -> Sample:
        """Some regions (and a caption), with a crop that carries their boxes.

        One region, drawn at random, is wholly inside the crop; the others are kept if enough of
        them is. Texts come in random order until the places are full.

        Args:
            record: which has regions.
            source: its picture: the file, or its bytes.
            epoch: which pass over the data.
            mask: draw tokens to predict.
            whole_first: the region that is wholly inside comes first, so that it has a place
                whatever ``max_regions`` is (grounding: the named box is never cut).

        Raises:
            PictureError: the picture cannot be read.
            SampleProblem: the record has no usable region.
        """
        settings = self.settings
        rng = augment.generator(self.seed, epoch, record.id, "regions")
        wanted = [r for r in record.regions if r.kind in settings.kinds]
        if record.regions and not wanted:
            raise SampleProblem(NO_WANTED_REGION)
        regions = [
            r
            for r in wanted
            if box_problem(r.box_xyxy_px, record.width, record.height) is None
            and not (settings.compat_official and _vanishes(r.box_xyxy_px))
        ]
        if not regions:
            raise SampleProblem("no region")
        kept = int(rng.integers(len(regions)))
        order = rng.permutation(len(regions)).tolist()
        if whole_first:
            order.remove(kept)
            order.insert(0, kept)
        image = self._read(source)
        if augment.size_of(image) != (record.width, record.height):
            raise SampleProblem(SIZE_MISMATCH)
        crop = self._crop(record, regions[kept], rng)
        boxes = [r.box_xyxy_px for r in regions]
        inside = set(self._carry(boxes, crop, flip=False).kept.tolist())
        caption: str | None = None
        if settings.caption and record.captions:
            caption = record.captions[int(rng.integers(len(record.captions)))]
        places = settings.max_regions - (caption is not None)
        picked = [index for index in order if index in inside][:places]
        absent: tuple[str, ...] = ()
        if settings.absent and record.absent:
            drawn = rng.permutation(len(record.absent))[: settings.absent]
            absent = tuple(record.absent[i] for i in drawn)
        texts = [regions[i].text for i in picked] + [caption or ""] + list(absent)
        flip = bool(rng.random() < 0.5) and settings.augment and self._may_flip(texts)
        if settings.augment:
            picture = augment.region_picture(image, rng, settings.image_size, crop=crop, flip=flip)
        else:
            assert isinstance(image, Image.Image)
            picture = augment.test_picture(image, settings.image_size)
        carried = self._carry(boxes, crop, flip=flip)
        placed = dict(zip(carried.kept.tolist(), carried.boxes_xyxy_px.tolist(), strict=True))
        ready = settings.tokenized_regions
        made = [] if caption is None else [self._text(caption, rng, mask=mask, ready=ready)]
        for i in picked:
            text = self._text(regions[i].text, rng, tuple(placed[i]), mask=mask, ready=ready)
            others = self._others(regions, placed, i)
            made.append(text and dataclasses.replace(text, others_xyxy_px=others))
        chosen = tuple(text for text in made if text is not None)
        if not chosen:
            raise SampleProblem("empty text" if made else "no region in the crop")
        missing = [self._text(text, rng, mask=False, ready=ready) for text in absent]
        not_there = tuple(text for text in missing if text is not None)
        return Sample(
            record.id,
            picture,
            chosen,
            not_there,
            self.words_of(record),
            cut=sum(text.cut for text in (*chosen, *not_there)),
            empty=len(made) - len(chosen) + len(missing) - len(not_there),
        )

    def _others(
        self, regions: Sequence[Region], placed: Mapping[int, Sequence[float]], index: int
    ) -> tuple[BoxXYXY, ...]:
        """Boxes of the other objects with the same label (official: there is one box a text)."""
        region = regions[index]
        if self.settings.compat_official or region.kind != "object":
            return ()
        boxes = []
        for other, (x1, y1, x2, y2) in placed.items():
            same = regions[other].kind == "object" and regions[other].text == region.text
            if same and other != index:
                boxes.append((x1, y1, x2, y2))
        return tuple(boxes)

    def _read(self, source: Path | bytes) -> Image.Image | NDArray[np.uint8]:
        """For Pillow where every integer must be as released (or in evaluation), else faster."""
        if self.settings.compat_official or not self.settings.augment:
            return read_picture(source)
        return read_pixels(source)

    def _crop(self, record: Record, keep: Region, rng: np.random.Generator) -> Crop:
        if not self.settings.augment:
            return Crop(0, 0, record.width, record.height)
        return crop_with_boxes(
            record.width,
            record.height,
            keep.box_xyxy_px,
            rng,
            compat_official=self.settings.compat_official,
        )

    def _carry(self, boxes_xyxy_px: list[BoxXYXY], crop: Crop, *, flip: bool) -> CarriedBoxes:
        return carry_boxes(
            boxes_xyxy_px,
            crop,
            flip,
            self.settings.image_size,
            self.settings.min_inside,
            compat_official=self.settings.compat_official,
        )

    # ------------------------------------------------------------------ texts

    def words_of(self, record: Record) -> frozenset[str]:
        """Every cleaned text of a record with regions."""
        texts = [r.text for r in record.regions] + list(record.captions)
        words = (self._words(text, ready=self.settings.tokenized_regions) for text in texts)
        return frozenset(filter(None, words))

    def _may_flip(self, texts: list[str]) -> bool:
        if not self.settings.careful_flip:
            return True
        compat = self.settings.compat_official
        return not any(names_a_side(text, compat_official=compat) for text in texts)

    def _words(self, text: str, *, ready: bool) -> str:
        """The cleaned text, or the word pieces of a ``ready`` one; empty if nothing is left."""
        if ready:
            return " ".join(text.split())
        try:
            return pre_caption(text, self.settings.max_words)
        except EmptyTextError:
            return ""

    def _text(
        self,
        text: str,
        rng: np.random.Generator,
        box_xyxy_px: BoxXYXY | None = None,
        *,
        mask: bool = True,
        ready: bool = False,
    ) -> SampleText | None:
        """Clean, tokenise and mask; None where nothing is left of the text."""
        settings, tokenizer = self.settings, self.tokenizer
        words = self._words(text, ready=ready)
        if not words:
            return None
        if ready:
            encoded = tokenizer.encode_pieces(words.split(" "), settings.max_tokens)
        else:
            encoded = tokenizer.encode(words, settings.max_tokens)
        if len(encoded.ids) < 2:
            return None
        masked = None
        if mask:
            masked = mask_tokens(
                encoded.ids,
                encoded.starts_word,
                rng,
                mask_prob=settings.mask_prob,
                max_masks=settings.max_masks,
                skipgram_prb=settings.skipgram_prb,
                skipgram_size=settings.skipgram_size,
                mask_id=tokenizer.mask_id,
                vocab_size=tokenizer.vocab_size,
                special_ids=tokenizer.special_ids,
                compat_official=settings.compat_official,
            )
        mask_P = None
        if box_xyxy_px is not None:
            x1, y1, x2, y2 = box_xyxy_px
            patch = settings.image_size // settings.grid
            mask_P = patch_mask((x1, y1, x2 - x1, y2 - y1), settings.grid, patch)
        return SampleText(words, encoded.ids, masked, box_xyxy_px, mask_P, encoded.cut)


def _vanishes(box_xyxy_px: BoxXYXY) -> bool:
    """Whether the released code, which cuts sizes to integers, sees no area in a box."""
    x1, y1, x2, y2 = box_xyxy_px
    return round(x2 - x1, 6) < 1 or round(y2 - y1, 6) < 1
