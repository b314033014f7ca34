"""Captioning, evaluated: a caption for every picture of a split, compared with people's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from xvlm_core.config.schema import ScoringSection
from xvlm_core.data import augment
from xvlm_core.data.batches import CaptionBatch, CaptionItem
from xvlm_core.data.caption_samples import prompt_ids
from xvlm_core.data.images import PictureError, read_picture
from xvlm_core.data.records import Record
from xvlm_core.data.store import Store
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.errors import ConfigError
from xvlm_core.inference.generate import Lengths, beam_search, greedy, most_beams
from xvlm_core.inference.writing import text_of
from xvlm_core.metrics.bootstrap import interval
from xvlm_core.metrics.caption.scores import score_captions
from xvlm_core.models.captioner import Captioner
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.sizes import ModelConfig
from xvlm_core.tasks.base import Batch, Prediction, Score, Scores
from xvlm_core.tasks.extra_scores import ExtraScores
from xvlm_core.tasks.split_items import SplitItems
from xvlm_core.weights.folder import ModelInfo

SELECTION = "CIDEr"
NO_REFERENCE = "no reference caption"
_METRICS = ("cider", "bleu", "rouge-l")
_IN_JAVA = ("meteor", "spice")
_TOKENS = "tokens of the PTB tokeniser"
_CONVENTIONS = {
    SELECTION: f"CIDEr-D, {_TOKENS}, document frequencies of this split",
    **{f"BLEU-{n}": f"of all captions together, {_TOKENS}" for n in range(1, 5)},
    "METEOR": f"version 1.5, of all captions together, {_TOKENS}",
}


def require_room(scoring: ScoringSection, prompt: Sequence[int], config: ModelConfig) -> None:
    """A caption of the greatest length fits the model, and is longer than the prompt.

    Raises:
        ConfigError: it does not, or is not; or there are more beams than tokens for them.
    """
    most, least = config.text.max_positions, len(prompt) + 1
    if not least <= scoring.max_length <= most:
        raise ConfigError(
            f"scoring.max_length is {scoring.max_length}; with CLS and the prompt a caption has at "
            f"least {least} tokens, and the model has {most} positions",
            where="scoring.max_length",
            try_=f"scoring.max_length={min(max(20, least + 16), most)}",
        )
    if scoring.beams > most_beams(config.text.vocab_size):
        raise ConfigError(
            f"scoring.beams is {scoring.beams}: too many for the tokens that the model has",
            where="scoring.beams",
            try_="scoring.beams=3",
        )


class CaptioningEvaluation(SplitItems):
    """The pictures of some stores' split, in order, each once.

    A :class:`xvlm_core.tasks.store_evaluation.StoreEvaluation`.
    """

    NO_ANSWER: ClassVar[dict[str, Any]] = {"caption": ""}
    EXTRA: ClassVar[str] = "METEOR and SPICE, programs in Java (--no-java: without them)"

    selection: str | None = SELECTION
    scoring = ScoringSection()
    prompt = ""

    @classmethod
    def of_model(
        cls,
        stores: Sequence[Store],
        split: str,
        tokenizer: Tokenizer,
        info: ModelInfo,
        *,
        scoring: ScoringSection | None = None,
        limit: int | None = None,
    ) -> Self:
        """Items as a model wants them.

        Raises:
            ConfigError: captions of the greatest length do not fit the model.
        """
        made = super().of_model(stores, split, tokenizer, info, scoring=scoring, limit=limit)
        made.scoring = scoring or ScoringSection()
        made.prompt = info.prompt
        require_room(made.scoring, prompt_ids(tokenizer, info.prompt), info.config)
        return made

    def references(self) -> Iterator[Prediction]:
        """Of every picture that has captions: ``id`` and what ``score`` wants beside."""
        self.forget_dropped()
        for place in self.places:
            item = _item(place.record(), place.prefix)
            if item.references:
                yield _reference(item)
            else:
                self.drop(item.id, NO_REFERENCE)

    def validation(self, rank: int = 0, world_size: int = 1) -> Iterator[CaptionBatch]:
        """Batches of pictures; the shares of the ranks, one after the other, are all in order."""
        for places in self.shares(rank, world_size):
            items, pictures = [], []
            for place in places:
                record = place.record()
                item = _item(record, place.prefix)
                if not item.references:
                    self.drop(item.id, NO_REFERENCE)
                    continue
                try:
                    image = read_picture(place.store.picture(record))
                except PictureError as problem:
                    self.drop(item.id, problem.reason)
                    continue
                items.append(item)
                shown = augment.test_picture(image, self.image_size)
                pictures.append(augment.normalise(shown))
            yield CaptionBatch(
                pictures_ICHW=torch.from_numpy(np.stack(pictures))
                if pictures
                else torch.zeros(0, 3),
                texts=PackedTexts.from_lists([]),
                picture_of_text_B=torch.zeros(0, dtype=torch.int64),
                items=tuple(items),
                record_ids=tuple(item.record for item in items),
                dropped=self.newly_dropped(),
            )

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """A caption of each picture; beams as the scoring says, one: greedy."""
        assert isinstance(model, Captioner)
        assert isinstance(batch, CaptionBatch)
        if not batch.items:
            return []
        prompt = prompt_ids(self.tokenizer, self.prompt)
        scoring = self.scoring
        lengths = Lengths(self.tokenizer.sep_id, scoring.max_length, scoring.min_length)
        speaker = model.speaker(model.encode_pictures(batch.pictures_ICHW))
        if scoring.beams == 1:
            found = greedy(speaker, prompt, lengths)
        else:
            found = [best for best, *_ in beam_search(speaker, prompt, lengths, scoring.beams)]
        return [
            {
                **_reference(item),
                "caption": text_of(one, self.tokenizer, len(prompt)),
                "log_probability": one.score,
            }
            for item, one in zip(batch.items, found, strict=True)
        ]

    def score(self, predictions: Sequence[Prediction]) -> Scores:
        """See :func:`score`."""
        return score(predictions, self.split)

    @staticmethod
    def extra_scores(predictions: Sequence[Prediction], split: str) -> ExtraScores:
        """METEOR and SPICE, where a working Java and pycocoevalcap have them.

        A :class:`xvlm_core.tasks.extra_scores.HasExtraScores`.

        Args:
            predictions: as for :func:`score`, one at least.
            split: that they are of.
        """
        return _scores(predictions, split, _IN_JAVA)


def _item(record: Record, prefix: str) -> CaptionItem:
    references = tuple(caption for caption in record.captions if caption.strip())
    return CaptionItem(f"{prefix}{record.id}", record.id, references)


def _reference(item: CaptionItem) -> Prediction:
    return {"id": item.id, "record": item.record, "references": list(item.references)}


def score(predictions: Sequence[Prediction], split: str) -> Scores:
    """CIDEr, BLEU-1 to 4 and ROUGE-L of all captions, as the COCO caption evaluation has them.

    Document frequencies of CIDEr are those of the references of the split, as there. METEOR and
    SPICE, which need Java, are not among them: see :meth:`CaptioningEvaluation.extra_scores`.

    Args:
        predictions: with ``id``, ``caption`` and ``references``.
        split: that they are of.
    """
    return _scores(predictions, split, _METRICS).scores if predictions else {}


def _scores(predictions: Sequence[Prediction], split: str, metrics: Sequence[str]) -> ExtraScores:
    unique = {p["id"]: p for p in predictions}
    assert len(unique) == len(predictions), "an id is predicted twice"
    found = score_captions(
        {name: p["caption"] for name, p in unique.items()},
        {name: p["references"] for name, p in unique.items()},
        metrics,
    )
    scores: Scores = {}
    for name in sorted(found.corpus, key=lambda name: name != SELECTION):
        of_the_set = name.startswith(("BLEU", "METEOR"))  # no mean over pictures
        scores[name] = Score(
            found.corpus[name],
            split,
            _CONVENTIONS.get(name, _TOKENS),
            len(unique),
            interval=None if of_the_set else interval(found.each[name], list(found.image_ids)),
        )
    return ExtraScores(scores, found.skipped)
