"""The training data of NLVR2: pairs of pictures with a statement."""

from __future__ import annotations

from collections.abc import Sequence

from xvlm_core.config.schema import Recipe
from xvlm_core.data.batches import PairBatch
from xvlm_core.data.feeds import StreamFeed
from xvlm_core.data.pair_samples import PairSample, PairSampleMaker, pair_batch
from xvlm_core.data.records import Record
from xvlm_core.data.store import Store


class PairFeed(StreamFeed):
    """Pairs with statements."""

    def __init__(self, recipe: Recipe, stores: Sequence[Store], maker: PairSampleMaker) -> None:
        pairs = recipe.data.pairs
        assert pairs is not None, "the task reads data.pairs"
        super().__init__(recipe, stores, "pairs", pairs.batch_size)
        self.maker = maker

    def batches(self, step: int, part: int = 0) -> tuple[PairBatch, ...]:
        """A part of the update of step 1, 2, ..."""
        samples, dropped = self.stream.samples_of(step, part, self._make)
        return (pair_batch(samples, dropped=dropped),)

    def _make(self, store: Store, record: Record, epoch: int) -> PairSample:
        return self.maker.of_pair(record, lambda which: store.picture(record, which), epoch)
