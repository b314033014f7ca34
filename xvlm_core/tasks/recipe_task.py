"""What our tasks share: a model of the recipe's shape, its weights, its samples, validation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
from torch import Tensor, nn

from xvlm_core.config.schema import Recipe
from xvlm_core.data.records import Record
from xvlm_core.data.samples import Sample, SampleMaker
from xvlm_core.data.store import Store
from xvlm_core.models.build import build_model
from xvlm_core.models.sizes import Head, ModelConfig
from xvlm_core.models.xvlm import XVLM
from xvlm_core.tasks.base import (
    Batch,
    Evaluation,
    Feed,
    InPasses,
    Losses,
    Moment,
    Prediction,
    Scores,
)
from xvlm_core.tasks.building import (
    initialise,
    model_shape,
    open_stores,
    open_validation,
    sample_settings,
    start_from_checkpoint,
    token_limit,
    tokenizer_of,
)
from xvlm_core.tasks.store_evaluation import StoreEvaluation
from xvlm_core.weights import official as official_weights
from xvlm_core.weights.folder import ModelInfo, load_weights, save_model_folder

Stream = Literal["images", "regions", "pairs", "questions"]
"""A section of ``data`` that names stores."""

SamplesOf = Callable[[Stream, int, Callable[[Record, bytes, int], Sample]], list[Sample]]
"""Samples of a stream: which, how many in an update, and what makes one of a record."""


class RecipeTask(ABC):
    """A task built from a recipe; subclasses add their data, their losses and their metric.

    Args:
        recipe: resolved.
        start_from: a model folder, or a released checkpoint, whose weights it starts from.

    Attributes:
        streams: the stores of each section of ``data`` that is trained on.
        name: of the task.
        about: what its models are, for people.
        heads: that its model carries.
        loss_names: the sections of ``losses`` that it has a use for.
        asks: how validation stores are asked about; None: the task has no validation.
        notes: what is worth saying once the model is built.
        first_weights: once it is built, every tensor by name: as in a file, resized, or random.
    """

    name: str
    about: str
    heads: tuple[Head, ...]
    loss_names: tuple[str, ...]
    asks: ClassVar[type[StoreEvaluation] | None] = None

    def __init__(self, recipe: Recipe, start_from: Path | None = None) -> None:
        self.recipe = recipe
        self.start_from = start_from
        self.tokenizer = tokenizer_of(recipe, start_from)
        self.config = self.shape()
        self.notes: list[str] = []
        self.first_weights: list[str] = []
        self.streams: dict[Stream, list[Store]] = {}
        for stream in get_args(Stream):
            section = getattr(recipe.data, stream)
            self.streams[stream] = open_stores(recipe, section.stores) if section else []
        self.validation_stores = open_validation(recipe)
        self.evaluation = self.open_evaluation() if self.validation_stores else None
        self.selection = self.evaluation.selection if self.evaluation else None

    # ------------------------------------------------------------------ model

    def shape(self) -> ModelConfig:
        """The shape of the model."""
        return model_shape(self.recipe, self.tokenizer, self.heads)

    def build_model(self, *, first_weights: bool = True) -> nn.Module:
        """A model with the task's heads, from the weights that the recipe names."""
        model = build_model(self.config)
        if not self._always_fuses():
            model.runs_in_every_part = ()
        if not first_weights:
            return model
        if self.start_from is not None:
            first = start_from_checkpoint(model, self.start_from)
        else:
            first = initialise(model, self.recipe)
        self.notes += first.notes
        self.first_weights = first.lines
        return model

    def _always_fuses(self) -> bool:
        """Whether a loss sends each text of each part through the cross encoder, from the start."""
        losses = self.recipe.losses
        return any(
            loss.weight > 0 and loss.start == 0 for loss in (losses.matching, losses.masked_lm)
        )

    def save_model(self, model: nn.Module, folder: Path) -> None:
        """Write a model folder."""
        assert isinstance(model, XVLM)
        save_model_folder(folder, model, self.tokenizer, self.info())

    def load_weights(self, model: nn.Module, folder: Path) -> None:
        """Load a checkpoint of this very task (resume)."""
        assert isinstance(model, XVLM)
        load_weights(model, folder)

    def official_name(self, name: str) -> str:
        """What the released code calls a parameter (its weight decay goes by names)."""
        return official_weights.official_name(name)

    def info(self) -> ModelInfo:
        """What the model folder says of the model."""
        stores = self.training_stores()
        names = dict.fromkeys(f"{store.name} ({store.manifest.source})" for store in stores)
        return ModelInfo(
            task=self.name,
            about=f"X-VLM {self.config.size}, {self.about}",
            trained_on=", ".join(names),
            max_words=self.recipe.text.max_words,
            max_tokens=token_limit(self.recipe, self.config),
            compat=self.recipe.compat,
            config=self.config,
        )

    # ------------------------------------------------------------------ training

    @abstractmethod
    def feed(self) -> Feed:
        """The training stream."""

    @abstractmethod
    def update_of(
        self, samples: SamplesOf, rng: np.random.Generator, parts: int
    ) -> list[tuple[Batch, float]]:
        """One part of every kind of update, and how many a step has of it on average.

        As the feed makes it, of samples that come from elsewhere: to foretell memory and time.
        """

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch, moment: Moment) -> Losses:
        """The losses of one part of an update."""

    @abstractmethod
    def sizes(self, batch: Batch, moment: Moment) -> Mapping[str, float | None]:
        """What each of them weighs in the update: see :class:`xvlm_core.tasks.base.Task`."""

    def training_stores(self) -> Sequence[Store]:
        """The stores that are trained on."""
        return [store for stores in self.streams.values() for store in stores]

    def sample_maker(self) -> SampleMaker:
        """Makes samples as the recipe says, for this model and tokenizer."""
        settings = sample_settings(self.recipe, self.config)
        return SampleMaker(settings, self.tokenizer, self.recipe.seed)

    def loss_weights(self, moment: Moment) -> dict[str, float]:
        """Weights of the losses that take part at this moment; a loss without weight has no key."""
        return {
            name: loss.weight
            for name, loss in self.recipe.losses
            if name in self.loss_names and loss.weight > 0 and moment.progress >= loss.start
        }

    def tables(self, model: nn.Module, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        """None: no loss looks at other parts of the update."""
        return {}

    # ------------------------------------------------------------------ validation

    def open_evaluation(self) -> Evaluation:
        """Every item of the validation stores; called where there are any."""
        assert self.asks is not None, "a recipe of this task with validation stores is refused"
        return self.asks.of_model(
            self.validation_stores,
            self.recipe.data.validation_split,
            self.tokenizer,
            self.info(),
            scoring=self.recipe.scoring,
            limit=self.recipe.data.validation_limit,
        )

    def validation(self, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """A rank's share of the validation stores, each item once."""
        return self.evaluation.validation(rank, world_size) if self.evaluation else iter(())

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Answers to a validation batch."""
        assert self.evaluation is not None, "there is nothing to validate on"
        return self.evaluation.predict(model, batch)

    def next_pass(
        self, predictions: Sequence[Prediction], rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch] | None:
        """See :class:`xvlm_core.tasks.base.InPasses`."""
        if not isinstance(self.evaluation, InPasses):
            return None
        return self.evaluation.next_pass(predictions, rank, world_size)

    def score(self, predictions: Sequence[Prediction]) -> Scores:
        """Figures over all predictions."""
        assert self.evaluation is not None, "there is nothing to validate on"
        return self.evaluation.score(predictions)
