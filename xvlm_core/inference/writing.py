"""Pictures in, captions out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from xvlm_core.data.caption_samples import prompt_ids
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.errors import CheckpointError, UsageError
from xvlm_core.inference.generate import (
    Lengths,
    Sampling,
    Written,
    beam_search,
    greedy,
    most_beams,
    sample,
)
from xvlm_core.inference.reading import (
    Picture,
    device_of,
    in_batches,
    model_pixels,
    upright_rgb,
)
from xvlm_core.models.captioner import Captioner
from xvlm_core.weights.folder import LoadedModel, load_model_folder

Search = Literal["beam", "greedy", "sample"]


def text_of(written: Written, tokenizer: Tokenizer, given: int) -> str:
    """The words after the prompt, without special tokens.

    Args:
        written: a text.
        tokenizer: of the model.
        given: tokens of CLS and the prompt.
    """
    return tokenizer.decode(written.ids[given:]).removeprefix("##")


@dataclass(frozen=True)
class Caption:
    """What a model says of a picture.

    Attributes:
        text: the caption.
        log_probability: natural logarithm, of a token in the mean; beams: the sum over all tokens
            over the length with CLS and the prompt.
        others: further captions, of a search or of samples, best first.
    """

    text: str
    log_probability: float
    others: tuple[Caption, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The caption as a JSON object."""
        row: dict[str, Any] = {"caption": self.text, "log_probability": self.log_probability}
        if self.others:
            row["others"] = [other.to_json() for other in self.others]
        return row


@dataclass(frozen=True)
class How:
    """How captions are looked for.

    Attributes:
        search: beams, the most probable word at each step, or draws.
        beams: of the search.
        captions: of each picture: the best of the search, or samples.
        sampling: how words are drawn.
        seed: of the draws; the same pictures in the same order get the same captions.
        max_length: the most tokens, with CLS and the prompt.
        min_length: beams: a caption of fewer tokens goes on.
    """

    search: Search = "beam"
    beams: int = 3
    captions: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    max_length: int = 20
    min_length: int = 5


class CaptionWriter:
    """A loaded captioner that describes pictures.

    Captions do not depend on how pictures are put into batches.
    """

    def __init__(self, loaded: LoadedModel, how: How | None = None, device: str = "auto") -> None:
        """Take a loaded model to a device ("auto": the GPU if there is one).

        Raises:
            CheckpointError: the model writes no captions.
            UsageError: there is no such device, or captions of such a length do not fit.
        """
        model = loaded.model
        if not isinstance(model, Captioner):
            raise CheckpointError(
                f"this model of task {loaded.info.task} writes no captions",
                try_="take a model of task captioning (xvlm ls runs)",
            )
        self.info = loaded.info
        self.tokenizer = loaded.tokenizer
        self.how = how or How()
        self.prompt = prompt_ids(self.tokenizer, loaded.info.prompt)
        most, least = loaded.info.config.text.max_positions, len(self.prompt) + 1
        if not least <= self.how.max_length <= most:
            raise UsageError(
                f"a caption of {self.how.max_length} tokens does not fit: with its prompt it has "
                f"at least {least}, and the model has {most} positions",
                try_=f"--max-length {min(max(20, least + 16), most)}",
            )
        if self.how.search == "beam" and self.how.captions > self.how.beams:
            raise UsageError(
                f"{self.how.beams} beams find no {self.how.captions} captions",
                try_=f"--beams {self.how.captions}",
            )
        most = most_beams(loaded.info.config.text.vocab_size)
        if self.how.search == "beam" and self.how.beams > most:
            raise UsageError(
                f"{self.how.beams} beams are too many for the tokens that the model has",
                try_=f"--beams {min(3, most)}  (at most {most})",
            )
        self.device = device_of(device)
        self.model: Captioner = model.to(self.device).eval()
        self._draws = torch.Generator().manual_seed(self.how.seed)

    @classmethod
    def from_folder(
        cls, path: Path | str, how: How | None = None, device: str = "auto"
    ) -> CaptionWriter:
        """Load a model folder (see :func:`xvlm_core.inference.checkpoints.find_checkpoint`).

        Raises:
            CheckpointError: missing, damaged, or a model that writes no captions.
            UsageError: there is no such device, or captions of such a length do not fit.
        """
        return cls(load_model_folder(Path(path)), how, device)

    def describe(self, picture: Picture) -> Caption:
        """The caption of one picture: a file, or a Pillow image of any mode.

        Raises:
            DataError: it cannot be read.
        """
        return self.describe_many([picture])[0]

    def describe_many(self, pictures: Iterable[Picture], batch_size: int = 16) -> list[Caption]:
        """Captions of many pictures, which are read when their batch comes.

        Raises:
            DataError: a picture cannot be read.
        """
        return [
            caption for batch in in_batches(pictures, batch_size) for caption in self._batch(batch)
        ]

    @torch.inference_mode()
    def _batch(self, batch: Sequence[Picture]) -> list[Caption]:
        side = self.info.config.vision.image_size
        pixels = [model_pixels(upright_rgb(picture), side) for picture in batch]
        pixels_ICHW = torch.from_numpy(np.stack(pixels)).to(self.device)
        speaker = self.model.speaker(self.model.encode_pictures(pixels_ICHW))
        how = self.how
        lengths = Lengths(self.tokenizer.sep_id, how.max_length, how.min_length)
        if how.search == "greedy":
            found = [[one] for one in greedy(speaker, self.prompt, lengths)]
        elif how.search == "beam":
            found = beam_search(speaker, self.prompt, lengths, how.beams)
        else:
            found = sample(
                speaker, self.prompt, lengths, self._draws, n=how.captions, how=how.sampling
            )
            found = [sorted(row, key=lambda one: -one.score) for row in found]
        return [self._caption(row[: how.captions]) for row in found]

    def _caption(self, row: Sequence[Written]) -> Caption:
        best, *others = (
            Caption(text_of(one, self.tokenizer, len(self.prompt)), one.score) for one in row
        )
        return Caption(best.text, best.log_probability, tuple(others))
