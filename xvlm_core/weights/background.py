"""What is recorded of how a model came about, for a comparison with another one. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from xvlm_core.config.recipes import kind_of_task
from xvlm_core.config.schema import Recipe
from xvlm_core.weights.provenance import Provenance, of_model


@dataclass(frozen=True)
class Background:
    """How a model was trained, as far as it is recorded.

    Attributes:
        task: of the last training; None: nothing is recorded (a released model, or another's).
        pretrained_on: stores that were pre-trained on, first to last.
        start: where the record ends: the model that the first recorded training started from; None:
            it goes back to the first weights.
        on_pairs: whether texts with two pictures were pre-trained on (for NLVR2).
        on_boxes: whether there was a pre-training of boxes alone (for grounding).
        on_captions: whether there was a pre-training to write captions (for captioning).
        chosen_on: the split that the checkpoint was chosen on; None: on none, or not recorded.
        trained_split: the split that was trained on last; None: not recorded.
    """

    task: str | None = None
    pretrained_on: tuple[str, ...] = ()
    start: str | None = None
    on_pairs: bool = False
    on_boxes: bool = False
    on_captions: bool = False
    chosen_on: str | None = None
    trained_split: str | None = None

    @property
    def is_recorded(self) -> bool:
        """Whether anything is."""
        return self.task is not None

    @property
    def is_whole(self) -> bool:
        """Whether the record goes back to the first weights: what it does not name was not done."""
        return self.is_recorded and self.start is None


def background_of(folder: Path) -> Background:
    """What the provenance of a model folder says.

    Raises:
        CheckpointError: it is damaged.
    """
    last = of_model(folder)
    return Background() if last is None else background(last)


def background(last: Provenance) -> Background:
    """What a provenance says, and those of the models before."""
    steps = list(_back(last))
    stores: dict[str, None] = {}
    for step in reversed(steps):
        if kind_of_task(step.task) == "pretrain":
            stores |= dict.fromkeys(_trained_on(step))
    first = steps[-1].started_from
    recipe = _recipe(last)
    chosen_on = trained_split = None
    if recipe is not None:
        trained_split = recipe.data.train_split
        if recipe.data.validation and last.scores:
            chosen_on = recipe.data.validation_split
    return Background(
        task=last.task,
        pretrained_on=tuple(stores),
        start=None if first is None else first.place,
        on_pairs=any(step.task == "nlvr2_pretrain" for step in steps),
        on_boxes=any(map(_is_of_boxes, steps)),
        on_captions=any(step.task == "caption_pretrain" for step in steps),
        chosen_on=chosen_on,
        trained_split=trained_split,
    )


def _back(last: Provenance) -> Iterator[Provenance]:
    """The trainings from the last one to the first that is recorded."""
    step: Provenance | None = last
    while step is not None:
        yield step
        step = None if step.started_from is None else step.started_from.provenance


def _recipe(step: Provenance) -> Recipe | None:
    """The recipe of a training; None: it is not recorded, or of another version of xvlm."""
    if step.recipe is None:
        return None
    try:
        return Recipe.model_validate_json(json.dumps(step.recipe))  # a list is a tuple there
    except ValidationError:
        return None


def _trained_on(step: Provenance) -> list[str]:
    """Names of the stores of a training; those of validation are among them if all that is known
    is what was read.
    """
    recipe = _recipe(step)
    if recipe is None:
        return list(step.stores)
    sections = (recipe.data.images, recipe.data.regions, recipe.data.pairs)
    return [name for section in sections if section is not None for name in section.stores]


def _is_of_boxes(step: Provenance) -> bool:
    """Whether boxes alone were learnt: a task of its own, or pre-training by these losses alone."""
    recipe = _recipe(step)
    if step.task != "pretrain" or recipe is None or recipe.data.regions is None:
        return step.task == "box_pretrain"
    losses = recipe.losses
    others = (losses.contrastive, losses.matching, losses.masked_lm)
    boxes = (losses.box_l1, losses.box_giou)
    return not any(loss.weight for loss in others) and any(loss.weight for loss in boxes)
