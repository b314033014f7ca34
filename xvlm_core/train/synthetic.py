"""A part of an update as a recipe makes it, without a picture being read.

The real makers of samples and batches work on blank pictures. The texts are those of the stores
that are there; for a store that is not there, as many and as long ones as the recipe allows.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from xvlm_core.config.schema import Recipe
from xvlm_core.data import augment
from xvlm_core.data.files import is_store, store_place
from xvlm_core.data.images import PictureError
from xvlm_core.data.records import Answer, Question, Record, Region, Statement
from xvlm_core.data.samples import Sample, SampleMaker, SampleProblem
from xvlm_core.data.store import Store
from xvlm_core.errors import DataError
from xvlm_core.tasks.base import Batch
from xvlm_core.tasks.recipe_task import RecipeTask, Stream
from xvlm_core.tasks.registry import task_class

_RECORDS = 32
"""Records that the texts are taken from, spread over the stores; they come again and again."""
_QUESTIONS, _PEOPLE = 6, 10
"""Questions of a picture, and people who answer each, where no store says how many there are."""


@dataclass(frozen=True)
class SyntheticPart:
    """One part of every kind of update.

    Attributes:
        batches: of each kind, and how many updates of it a step has on average.
        pictures: of all of them together, in a step.
        looked_at: stores whose texts were taken; empty: the texts are the longest ones possible.
    """

    batches: tuple[tuple[Batch, float], ...]
    pictures: float
    looked_at: tuple[str, ...]


def task_without_data(recipe: Recipe) -> RecipeTask:
    """The recipe's task, with none of its stores opened.

    Raises:
        ConfigError, CheckpointError: from the task.
    """
    data = recipe.data
    changes: dict[str, object] = {"validation": ()}
    for name in ("images", "regions", "pairs", "questions"):
        section = getattr(data, name)
        if section is not None:
            changes[name] = section.model_copy(update={"stores": ()})
    bare = recipe.model_copy(update={"data": data.model_copy(update=changes)})
    return task_class(recipe.task)(bare)


def synthetic_part(recipe: Recipe, task: RecipeTask, parts: int) -> SyntheticPart:
    """A part of an update that is divided into ``parts``."""
    looked_at: dict[str, None] = {}

    def samples(
        stream: Stream, count: int, make: Callable[[Record, bytes, int], Sample]
    ) -> list[Sample]:
        found = []
        for name, record in _records(recipe, getattr(recipe.data, stream).stores):
            try:
                found.append(make(record, _blank(record.width, record.height), 0))
            except (PictureError, SampleProblem):
                continue  # nor would it be trained on
            looked_at[name] = None
        if not found:
            record = _longest(task.sample_maker(), pair=stream == "pairs")
            if stream == "questions":
                record = _with_questions(record, recipe)
            found = [make(record, _blank(record.width, record.height), 0)]
        return list(itertools.islice(itertools.cycle(found), max(1, count // parts)))

    rng = augment.generator(recipe.seed, 1, "batch", "synthetic")
    batches = tuple(task.update_of(samples, rng, parts))
    pictures = parts * sum(often * batch.n_pictures for batch, often in batches)
    return SyntheticPart(batches, pictures, tuple(looked_at))


def _records(recipe: Recipe, names: Sequence[str]) -> list[tuple[str, Record]]:
    """Some records of the training split of those stores that are there."""
    root = recipe.data.root
    there = [name for name in names if is_store(store_place(root, name))]
    found: list[tuple[str, Record]] = []
    for name in there:
        try:
            store = Store.of_recipe(recipe.data, name)
            numbers = store.numbers(recipe.data.train_split)
            step = max(1, len(numbers) * len(there) // _RECORDS)
            found += [(name, store[numbers[i]]) for i in range(0, len(numbers), step)]
        except DataError:
            continue  # said in the list of stores
    return found


def _longest(maker: SampleMaker, *, pair: bool) -> Record:
    """A record with as many and as long texts as any may have; of a pair of pictures if asked."""
    settings = maker.settings
    side = settings.image_size
    # a word is at least one token
    text = " ".join(["dog"] * min(settings.max_words, settings.max_tokens))

    def numbered(count: int, start: int) -> list[str]:
        return [f"{start + i} {text}" for i in range(count)]

    everywhere = (0.0, 0.0, float(side), float(side))
    return Record(
        id="longest",
        images=("longest.png",) * (1 + pair),
        width=side,
        height=side,
        captions=tuple(numbered(1, 0)),
        regions=tuple(
            Region(words, everywhere, settings.kinds[0])
            for words in numbered(settings.max_regions, 1)
        ),
        absent=tuple(numbered(settings.absent, 1 + settings.max_regions)),
        statement=Statement(text, label=True) if pair else None,
        split="train",
        source="synthetic",
    )


def _with_questions(record: Record, recipe: Recipe) -> Record:
    """As many questions as an update may have of a picture, each as long as the caption."""
    questions = recipe.data.questions
    assert questions is not None
    answers = tuple(Answer(f"{n} red dogs", 0.1) for n in range(_PEOPLE))
    asked = Question("", record.captions[0], answers)
    n = questions.per_picture or _QUESTIONS
    return replace(record, questions=tuple(replace(asked, id=str(i)) for i in range(n)))


def _blank(width: int, height: int) -> bytes:
    """A picture of that size as the bytes of a file."""
    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, "PNG", compress_level=1)
    return out.getvalue()
