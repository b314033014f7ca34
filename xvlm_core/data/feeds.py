"""The training data of a task as a pure function of the step.

Feeds travel to loader workers: they hold stores (reopened there), numbers and a tokenizer.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from xvlm_core.config.schema import Recipe
from xvlm_core.data import augment
from xvlm_core.data.batches import GroundingBatch, PretrainBatch
from xvlm_core.data.collate import grounding_batch, pretrain_batch, retrieval_batch
from xvlm_core.data.dropped import BadSample, BadSamples, Dropped
from xvlm_core.data.images import PictureError
from xvlm_core.data.numbers import RecordNumbers
from xvlm_core.data.record_kinds import numbers_of
from xvlm_core.data.records import Record
from xvlm_core.data.samples import SIZE_MISMATCH, Sample, SampleMaker, SampleProblem
from xvlm_core.data.store import Store
from xvlm_core.data.stream import Place, Stream, coin
from xvlm_core.errors import ConfigError, DataError

Make = Callable[[Record, Path | bytes, int], Sample]
MakeOf = Callable[[Store, Record, int], Sample]

_MOST_EMPTY_STEPS = 16
"""Steps without any usable sample after which a run gives up."""


class StoreStream:
    """A stream over the training split of some stores, as samples.

    The stream ``pairs`` has the records of two pictures with a statement, any other the rest.

    Args:
        stores: where the records are.
        split: which of them.
        batch_size: records a step, over all parts.
        seed: of the run.
        name: of the stream.
        parts: equal parts that a step is divided into.

    Raises:
        DataError: none of the stores has such a record of the split.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        split: str,
        batch_size: int,
        seed: int,
        name: str,
        parts: int = 1,
    ) -> None:
        self.stores = tuple(stores)
        self.name = name
        indices = [self.numbers(store, split) for store in stores]
        self.n_records = sum(len(index) for index in indices)
        if not self.n_records:
            names = ", ".join(store.name for store in stores)
            kinds = {"pairs": "pair of pictures", "questions": "picture with an answered question"}
            what = kinds.get(name, "record")
            raise DataError(
                f"no {what} of split {split!r} in {names}",
                where=f"data.{name}.stores",
                try_="data.train_split=...  (xvlm ls stores shows the splits that are there)",
            )
        self.stream = Stream(indices, batch_size, seed, name=name, parts=parts)

    def numbers(self, store: Store, split: str) -> RecordNumbers:
        """Numbers that places name the records of a store by."""
        return numbers_of(store, split, pairs=self.name == "pairs")

    def record_at(self, place: Place) -> Record:
        """What a sample is made of."""
        return self.stores[place.store][place.record]

    @property
    def steps_per_epoch(self) -> int:
        """Steps that make one pass."""
        return self.stream.steps_per_epoch

    def samples(self, step: int, part: int, make: Make) -> tuple[list[Sample], Dropped]:
        """As :meth:`samples_of`, of records of one picture each."""

        def made(store: Store, record: Record, epoch: int) -> Sample:
            return make(record, store.picture(record), epoch)

        return self.samples_of(step, part, made)

    def samples_of(self, step: int, part: int, make: MakeOf) -> tuple[list[Sample], Dropped]:
        """The samples of a part of a step, and those left out.

        Where it has no usable sample at all, those of the same part of the steps after it serve:
        in a long run over data with some bad records that happens, and is no reason to stop. So
        the parts of a step stay parts of one step, on whichever rank they are.

        Raises:
            DataError: nothing usable there either.
        """
        reasons: Counter[str] = Counter()
        bad: list[BadSample] = []
        for later in range(step, step + _MOST_EMPTY_STEPS):
            samples: list[Sample] = []
            for place in self.stream.places(later, part):
                store = self.stores[place.store]
                record = self.record_at(place)
                try:
                    samples.append(make(store, record, place.epoch))
                except (PictureError, SampleProblem) as problem:
                    reasons[problem.reason] += 1
                    if isinstance(problem, PictureError) or problem.reason == SIZE_MISMATCH:
                        where = (store.name, str(store.place), record.id)
                        which = problem.which if isinstance(problem, PictureError) else 0
                        bad.append(BadSample(*where, problem.reason, record.images[which]))
            if samples:
                return samples, Dropped(reasons, BadSamples.of(bad))
        told = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
        others = f"data.{self.name}.stores=[...]  (xvlm ls stores shows those that are there)"
        raise DataError(
            f"no usable sample from step {step} on: {told}",
            details=BadSamples.of(bad).lines(),
            where=", ".join(str(store.place) for store in self.stores),
            try_=f"xvlm validate {self.stores[0].place}" if bad else others,
        )


class PretrainFeed:
    """Two streams, mixed as the recipe says (official.md 2.1).

    ``extra``: a step is an update on a batch of captions, preceded by an update on a region batch
    in a share ``iter_perc`` of the steps. ``joint``: one update on both together.
    """

    def __init__(
        self,
        recipe: Recipe,
        images: Sequence[Store],
        regions: Sequence[Store],
        maker: SampleMaker,
    ) -> None:
        data = recipe.data
        self.recipe = recipe
        self.maker = maker
        self.images = self.regions = None
        self.parts = parts_of(recipe)
        split, seed = data.train_split, recipe.seed
        if data.images is not None:
            size = data.images.batch_size
            self.images = StoreStream(images, split, size, seed, "images", self.parts)
        self.batch_texts = None
        if data.regions is not None:
            size = data.regions.max_images
            self.regions = StoreStream(regions, split, size, seed, "regions", self.parts)
            if data.regions.batch_texts is not None:
                self.batch_texts = data.regions.batch_texts // self.parts

    @property
    def steps_per_epoch(self) -> int:
        """Steps that make one pass over the pictures with captions (or regions, without them)."""
        stream = self.images or self.regions
        assert stream is not None
        return steps_per_epoch(self.recipe, stream)

    def batches(self, step: int, part: int = 0) -> tuple[PretrainBatch, ...]:
        """A part of the updates of step 1, 2, ..."""
        data, compat = self.recipe.data, self.recipe.compat == "official"
        if data.mix == "joint":
            samples: list[Sample] = []
            dropped = Dropped()
            if self.images is not None:
                samples, dropped = self.images.samples(step, part, self.maker.of_caption)
            captions = len(samples)
            if self.regions is not None:
                some, lost = self.regions.samples(step, part, self.maker.of_regions)
                samples += some
                dropped += lost
            batch = pretrain_batch(
                samples,
                batch_texts=self.batch_texts,
                always=captions,
                rng=self._texts_generator(step, part),
                dropped=dropped,
                part=part,
                compat_official=compat,
            )
            return (batch,)
        updates = []
        if self.regions is not None and data.regions is not None:
            wanted = coin(self.recipe.seed, step, "regions") < data.regions.iter_perc
            if wanted or self.images is None:
                samples, dropped = self.regions.samples(step, part, self.maker.of_regions)
                batch = pretrain_batch(
                    samples,
                    batch_texts=self.batch_texts,
                    rng=self._texts_generator(step, part),
                    dropped=dropped,
                    part=part,
                    compat_official=compat,
                )
                updates.append(_counted(batch, part))
        if self.images is not None:
            samples, dropped = self.images.samples(step, part, self.maker.of_caption)
            updates.append(
                pretrain_batch(samples, dropped=dropped, part=part, compat_official=compat)
            )
        return tuple(updates)

    def _texts_generator(self, step: int, part: int) -> np.random.Generator:
        return augment.generator(self.recipe.seed, step, "batch", f"texts {part}")


class StreamFeed:
    """One stream, one update a step; subclasses make the batch.

    Args:
        recipe: resolved.
        stores: of the stream.
        name: of the section of ``data`` that it is.
        batch_size: records an update, over all parts.
    """

    def __init__(self, recipe: Recipe, stores: Sequence[Store], name: str, batch_size: int) -> None:
        self.recipe = recipe
        self.stream = StoreStream(
            stores, recipe.data.train_split, batch_size, recipe.seed, name, parts_of(recipe)
        )

    @property
    def steps_per_epoch(self) -> int:
        """Steps that make one pass, over the records or over ``data.size`` samples."""
        return steps_per_epoch(self.recipe, self.stream)


class PictureTextFeed(StreamFeed):
    """Whole pictures with texts, where the texts of a picture belong together."""

    def batches(self, step: int, part: int = 0) -> tuple[PretrainBatch, ...]:
        """A part of the update of step 1, 2, ..."""
        samples, dropped = self.stream.samples_of(step, part, self._make)
        official = self.recipe.compat == "official"
        return (retrieval_batch(samples, dropped=dropped, part=part, compat_official=official),)

    def _make(self, store: Store, record: Record, epoch: int) -> Sample:
        sample = self.sample(record, store.picture(record), epoch)
        # a picture may have several records (RefCOCO: one an expression), and pictures of
        # different stores may have the same name
        number = next(n for n, one in enumerate(self.stream.stores) if one is store)
        return dataclasses.replace(sample, picture_id=f"{number}:{record.image}")

    def sample(self, record: Record, source: Path | bytes, epoch: int) -> Sample:
        """A picture with its texts in a pass."""
        raise NotImplementedError


class CaptionFeed(PictureTextFeed):
    """Pictures with one of their captions each.

    In each pass over the pictures a picture comes with the next of its captions, in an order of
    its own: all come once before one comes again.
    """

    def __init__(self, recipe: Recipe, stores: Sequence[Store], maker: SampleMaker) -> None:
        images = recipe.data.images
        assert images is not None, "the retrieval task reads data.images"
        super().__init__(recipe, stores, "images", images.batch_size)
        self.maker = maker

    def sample(self, record: Record, source: Path | bytes, epoch: int) -> Sample:
        """See :class:`PictureTextFeed`."""
        single = with_one_caption(record, self.recipe.seed, epoch)
        return self.maker.of_caption(single, source, epoch, mask=False)


def with_one_caption(record: Record, seed: int, epoch: int) -> Record:
    """The record with the caption whose turn it is in a pass.

    Args:
        record: without captions it stays as it is.
        seed: of the run.
        epoch: which pass over the data.
    """
    if not record.captions:
        return record
    lap, turn = divmod(epoch, len(record.captions))
    order = augment.generator(seed, lap, record.id, "caption order").permutation(
        len(record.captions)
    )
    return dataclasses.replace(record, captions=(record.captions[int(order[turn])],))


class GroundingFeed(StreamFeed):
    """Pictures with phrases to find."""

    def __init__(self, recipe: Recipe, stores: Sequence[Store], maker: SampleMaker) -> None:
        regions = recipe.data.regions
        assert regions is not None, "the grounding task reads data.regions"
        super().__init__(recipe, stores, "regions", regions.max_images)
        self.maker = maker
        # absent phrases serve matching alone
        self.negatives = regions.absent if recipe.losses.matching.weight > 0 else 0

    def batches(self, step: int, part: int = 0) -> tuple[GroundingBatch, ...]:
        """A part of the update of step 1, 2, ..."""
        samples, dropped = self.stream.samples(step, part, self._make)
        rng: np.random.Generator = augment.generator(
            self.recipe.seed, step, "batch", f"negatives {part}"
        )
        return (grounding_batch(samples, negatives=self.negatives, rng=rng, dropped=dropped),)

    def _make(self, record: Record, source: Path | bytes, epoch: int) -> Sample:
        return self.maker.of_regions(record, source, epoch, mask=False, whole_first=True)


def parts_of(recipe: Recipe) -> int:
    """Parts of an update: ``train.micro_batches``, or 1 where it is not settled yet.

    Raises:
        ConfigError: a batch cannot be divided into so many equal parts; all sizes are named.
    """
    parts, data = recipe.train.micro_batches or 1, recipe.data
    sizes: dict[str, int] = {}
    if data.images is not None:
        sizes["data.images.batch_size"] = data.images.batch_size
    if data.regions is not None:
        sizes["data.regions.max_images"] = data.regions.max_images
        sizes["data.regions.batch_texts"] = data.regions.batch_texts or parts
    if data.pairs is not None:
        sizes["data.pairs.batch_size"] = data.pairs.batch_size
    if data.questions is not None:
        sizes["data.questions.batch_size"] = data.questions.batch_size
    uneven = {key: size for key, size in sizes.items() if size % parts}
    if not uneven:
        return parts
    said = ", ".join(f"{key} is {size}" for key, size in uneven.items())
    raise ConfigError(
        f"a batch cannot be divided into {parts} equal parts: {said}",
        where="train.micro_batches",
        try_=" ".join(f"{key}={max(1, round(n / parts)) * parts}" for key, n in uneven.items())
        + "  (or another train.micro_batches, or number of processes)",
    )


def _counted(batch: PretrainBatch, part: int) -> PretrainBatch:
    """A region batch that says in the log that it is one, and whether it has no box to learn."""
    counts = dict(batch.counts)
    if part == 0:  # parts are added up
        counts["region_updates"] = 1
    if not batch.is_region_B.any():
        counts["parts_without_region"] = 1
    return dataclasses.replace(batch, counts=counts)


def steps_per_epoch(recipe: Recipe, stream: StoreStream) -> int:
    """Steps of a pass: by ``data.size`` where the recipe says it, else by the records there."""
    if recipe.data.size is None:
        return stream.steps_per_epoch
    return -(-recipe.data.size // stream.stream.batch_size)
