"""What our tasks share: an X-VLM of the recipe's shape, its weights, validation by grounding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor, nn

from xvlm_core.config.schema import Recipe
from xvlm_core.data.batches import GroundingBatch
from xvlm_core.data.samples import SampleMaker
from xvlm_core.data.store import Store
from xvlm_core.models.sizes import Head
from xvlm_core.models.xvlm import XVLM
from xvlm_core.tasks import grounding_eval
from xvlm_core.tasks.base import Batch, Moment, Prediction, Scores
from xvlm_core.tasks.building import (
    initialise,
    model_shape,
    open_validation,
    sample_settings,
    start_from_checkpoint,
    token_limit,
    tokenizer_of,
)
from xvlm_core.weights import official as official_weights
from xvlm_core.weights.folder import ModelInfo, load_weights, save_model_folder


class RecipeTask(ABC):
    """A task built from a recipe; subclasses add their data and their losses.

    Args:
        recipe: resolved.
        heads: the heads that the model carries.
        start_from: a model folder, or a released checkpoint, whose weights it starts from.

    Attributes:
        notes: what is worth saying once the model is built.
        first_weights: once it is built, every tensor by name: as in a file, resized, or random.
    """

    name: str
    about: str

    def __init__(self, recipe: Recipe, heads: tuple[Head, ...], start_from: Path | None) -> None:
        self.recipe = recipe
        self.start_from = start_from
        self.tokenizer = tokenizer_of(recipe, start_from)
        self.config = model_shape(recipe, self.tokenizer, heads)
        self.notes: list[str] = []
        self.first_weights: list[str] = []
        self.validation_stores = open_validation(recipe)
        self.selection = grounding_eval.SELECTION if self.validation_stores else None

    # ------------------------------------------------------------------ model

    def build_model(self, *, first_weights: bool = True) -> nn.Module:
        """A model with the task's heads, from the weights that the recipe names."""
        model = XVLM(self.config)
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
            config=self.config,
        )

    # ------------------------------------------------------------------ training

    @abstractmethod
    def training_stores(self) -> Sequence[Store]:
        """The stores that are trained on."""

    def sample_maker(self) -> SampleMaker:
        """Makes samples as the recipe says, for this model and tokenizer."""
        settings = sample_settings(self.recipe, self.config)
        return SampleMaker(settings, self.tokenizer, self.recipe.seed)

    def loss_weights(self, moment: Moment) -> dict[str, float]:
        """Weights of the losses that take part at this moment; a loss without weight has no key."""
        return {
            name: loss.weight
            for name, loss in self.recipe.losses
            if loss.weight > 0 and moment.progress >= loss.start
        }

    def tables(self, model: nn.Module, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        """None: no loss looks at other parts of the update."""
        return {}

    # ------------------------------------------------------------------ validation

    def validation(self, rank: int = 0, world_size: int = 1) -> Iterator[GroundingBatch]:
        """Phrases of a rank's share of the validation stores, each once."""
        return grounding_eval.GroundingEvaluation.of_model(
            self.validation_stores,
            self.recipe.data.validation_split,
            self.tokenizer,
            self.info(),
            limit=self.recipe.data.validation_limit,
        ).batches(rank, world_size)

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Boxes and probabilities of phrases."""
        assert isinstance(model, XVLM)
        assert isinstance(batch, GroundingBatch)
        return grounding_eval.predict(model, batch)

    def score(self, predictions: Sequence[Prediction]) -> Scores:
        """Box accuracy and presence."""
        return grounding_eval.score(predictions, self.recipe.data.validation_split)
