"""The part of a recipe that says what is read: texts, and the streams of pictures with texts.

Imports no torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from xvlm_core.config.section import Fraction, Section
from xvlm_core.data.records import REGION_KINDS, RegionKind


class TextSection(Section):
    """Tokens and masking (official.md 2.4, 2.7)."""

    tokenizer: str = Field(
        "bert-base-uncased",
        description="'bert-base-uncased' (packaged), 'world', or a tokenizer.json or vocab.txt",
    )
    max_words: int = Field(40, gt=0, description="words kept by the cleaning")
    max_tokens: int = Field(40, gt=1, description="tokens kept, CLS included")
    mask_prob: Fraction = Field(0.25, description="share of tokens to predict")
    max_masks: int = Field(8, gt=0, description="most tokens to predict in one text")
    skipgram_prb: Fraction = Field(0.2, description="chance of masking a run of 2..skipgram_size")
    skipgram_size: int = Field(3, ge=2)


class _Stream(Section):
    stores: tuple[str, ...] = Field(min_length=1, description="store folders under data.root")


class ImagesSection(_Stream):
    """The stream of pictures with captions."""

    batch_size: int = Field(128, gt=0, description="pictures an update, over all ranks")


class RegionsSection(_Stream):
    """The stream of pictures with regions."""

    batch_texts: int | None = Field(
        128,
        gt=0,
        description="at most this many texts an update, over all ranks; null: all that the "
        "pictures give",
    )
    max_images: int = Field(48, gt=0, description="pictures an update, over all ranks")
    max_regions: int = Field(5, gt=0, description="texts a picture (a caption takes one place)")
    kinds: tuple[RegionKind, ...] = Field(
        REGION_KINDS, min_length=1, description="kinds of regions that serve; others are left out"
    )
    caption: bool = Field(True, description="also use one caption of the picture, if it has any")
    min_perc_in_image: Fraction = Field(
        0.5, description="a box is kept if more than this share of it is inside the crop"
    )
    tokenized: bool = Field(
        False,
        description="texts are word pieces with spaces between, taken as they are (the released "
        "16M regions); false: texts are cleaned",
    )
    absent: int = Field(
        0, ge=0, description="texts a picture known NOT to be in it, for matching (0: none)"
    )
    iter_perc: Fraction = Field(0.5, description="mix extra: share of steps with a region update")


class PairsSection(_Stream):
    """The stream of pairs of pictures with a statement about both."""

    batch_size: int = Field(80, gt=0, description="pairs an update, over all ranks")


class QuestionsSection(_Stream):
    """The stream of pictures with questions and their answers."""

    batch_size: int = Field(
        192, gt=0, description="pictures an update, with their questions, over all ranks"
    )
    per_picture: int | None = Field(
        None,
        gt=0,
        description="at most so many questions of a picture in an update, the others come in "
        "further ones of the pass (released: 1); null: all, the picture is encoded once for them",
    )


class DataSection(Section):
    """What is read, and how it is mixed."""

    root: str = Field(
        "data", description="folder of the prepared stores, or a URL such as s3://bucket/stores"
    )
    cache: str | None = Field(
        None,
        description="folder that keeps what was read from a URL; null: ~/.cache/xvlm/stores",
    )
    cache_gb: float = Field(20.0, gt=0, description="the most that it may take, 10^9 bytes")
    images: ImagesSection | None = None
    regions: RegionsSection | None = None
    pairs: PairsSection | None = None
    questions: QuestionsSection | None = None
    mix: Literal["extra", "joint"] = Field(
        "extra",
        description="extra: a region batch is a further update of its own (the released code); "
        "joint: one update on both together (the paper)",
    )
    validation: tuple[str, ...] = Field((), description="stores that select the best checkpoint")
    validation_split: str = Field("val", description="split of the validation stores")
    validation_limit: int | None = Field(None, gt=0, description="at most this many pictures")
    train_split: str = Field("train", description="split that is trained on")
    held_out: tuple[str, ...] = Field(
        (),
        description="stores (NAME, or NAME:val,test) whose validation and test pictures must not "
        "be trained on; those that are not prepared are named and passed over",
    )
    leaks: Literal["refuse", "allow"] = Field(
        "refuse", description="what to do if one of them is in the training data"
    )
    careful_flip: bool | None = Field(
        None,
        description="never mirror a picture whose text has the word left or right; null: as true, "
        "but false under compat=official in all but grounding with boxes and vqa, as released",
    )
    augment: bool = Field(True, description="random crop, flip and RandAugment in training")
    max_bad: Fraction = Field(
        0.01,
        description="share of the training samples that may be damaged (unreadable, or of another "
        "size than recorded) before the run ends: of the last 10,000, judged every 1,000 or every "
        "pass, and at least three records; 0: the first one ends it",
    )
    workers: int = Field(4, ge=0, description="loader processes a rank")
    size: int | None = Field(
        None, gt=0, description="samples that count as an epoch; null: those found on disk"
    )

    @model_validator(mode="after")
    def _something_to_read(self) -> DataSection:
        streams = (self.images, self.regions, self.pairs, self.questions)
        if all(stream is None for stream in streams):
            raise ValueError(
                "at least one of data.images, data.regions, data.pairs and data.questions is needed"
            )
        return self
