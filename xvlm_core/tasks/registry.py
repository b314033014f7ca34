"""Which tasks there are, and which prepared data a recipe lacks. Imports no torch at the top."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xvlm_core.config.schema import Recipe
from xvlm_core.data.files import is_store, is_url, store_place
from xvlm_core.errors import DataError

if TYPE_CHECKING:
    from xvlm_core.tasks.recipe_task import RecipeTask

TASKS: dict[str, str] = {
    "pretrain": "contrastive, matching, masked words and boxes, on whole pictures and on regions",
    "box_pretrain": "boxes alone, after pretrain: prepares for grounding",
    "grounding": "the box of what a phrase names, and whether it is there at all",
    "weak_grounding": "grounding learnt from pictures and phrases alone, without a box",
    "retrieval": "the text of a picture among many, and the picture of a text",
    "nlvr2": "whether a statement about two pictures is true",
    "nlvr2_pretrain": "which of two pictures a text belongs to: prepares for nlvr2",
    "vqa": "the answer of a question about a picture",
    "caption_pretrain": "to write captions word by word: prepares for captioning",
    "captioning": "to write a caption of a picture",
}
"""Task and what it learns, for ``xvlm ls tasks``."""

_READERS = {
    "coco": "coco",
    "coco-karpathy": "karpathy",
    "flickr30k": "karpathy",
    "vg": "visual-genome",
    "sbu": "web-pairs",
    "cc3m": "web-pairs",
    "cc12m": "web-pairs",
    "objects365": "objects365",
    "openimages": "openimages",
    "refcoco": "refcoco",
    "refcoco+": "refcoco",
    "refcocog": "refcoco",
    "vqa": "vqa",
    "easy-vqa": "easy-vqa",
    "nlvr2": "nlvr2",
}
"""The source that makes a store of this name."""


@dataclass(frozen=True)
class MissingStore:
    """A store that a recipe reads and that is not there; the command that prepares it."""

    name: str
    path: Path | str
    command: str


def stores_of(recipe: Recipe) -> list[str]:
    """Names of the stores a recipe reads, training first, each once."""
    data = recipe.data
    sections = (data.images, data.regions, data.pairs, data.questions)
    streams = [stream.stores for stream in sections if stream is not None]
    names = (*streams, data.validation, recipe.scoring.proposals)
    return list(dict.fromkeys(name for some in names for name in some))


def missing_stores(recipe: Recipe) -> list[MissingStore]:
    """Stores that are not there, in the order in which the recipe names them. Opens nothing.

    Raises:
        DataError: a remote place does not answer.
        MissingToolError: fsspec lacks a package for the protocol of ``data.root``.
    """
    places = {name: store_place(recipe.data.root, name) for name in stores_of(recipe)}
    return [
        MissingStore(name, place, _command(name, place))
        for name, place in places.items()
        if not is_store(place)
    ]


def require_stores(recipe: Recipe, recipe_name: str) -> None:
    """Refuse to go on without data.

    Raises:
        DataError: one detail line for each missing store, with the command that prepares it;
            ``Try:`` names the synthetic stand-in.
    """
    missing = missing_stores(recipe)
    if not missing:
        return
    names = ", ".join(store.name for store in missing)
    root = recipe.data.root.rstrip("/") if is_url(recipe.data.root) else recipe.data.root
    local = "data" if is_url(root) else root
    raise DataError(
        f"no data for {recipe_name}: {names} {'is' if len(missing) == 1 else 'are'} not in {root}/",
        details=[f"{store.name}: {store.command}" for store in missing],
        where=root if is_url(root) else str(Path(root).absolute()),
        try_=f"xvlm prepare-data world --as {recipe_name} -o {local}  "
        "(synthetic pictures as a stand-in)" + (f", then data.root={local}" * is_url(root)),
    )


def fingerprints(recipe: Recipe) -> dict[str, str]:
    """Fingerprint of each store of a recipe, by its name: equal data, equal fingerprint.

    Raises:
        DataError: a store is missing or damaged.
    """
    from xvlm_core.data.store import Store

    return {
        name: Store.of_recipe(recipe.data, name).manifest.fingerprint for name in stores_of(recipe)
    }


def _command(name: str, place: Path | str) -> str:
    known = name in _READERS
    source = f"{_READERS[name]} FOLDER" if known else f"jsonl {name}.jsonl --images FOLDER"
    if name in ("world", "easy-vqa"):  # nothing to be named
        source = name
    if isinstance(place, Path):
        return f"xvlm prepare-data {source} -o {place}"
    local = Path("data", name)
    return f"xvlm prepare-data {source} -o {local} --pack, and copy {local} to {place}"


_CLASSES = {
    "pretrain": "pretrain:PretrainTask",
    "box_pretrain": "pretrain:BoxPretrainTask",
    "grounding": "grounding:GroundingTask",
    "weak_grounding": "weak_grounding:WeakGroundingTask",
    "retrieval": "retrieval:RetrievalTask",
    "nlvr2": "nlvr2:Nlvr2Task",
    "nlvr2_pretrain": "nlvr2_pretrain:Nlvr2PretrainTask",
    "vqa": "vqa:VqaTask",
    "caption_pretrain": "caption_pretrain:CaptionPretrainTask",
    "captioning": "captioning:CaptioningTask",
}


def task_class(name: str) -> type[RecipeTask]:
    """The class of a task of :data:`TASKS`. Imports torch."""
    module, _, attribute = _CLASSES[name].partition(":")
    found: type[RecipeTask] = getattr(
        importlib.import_module(f"xvlm_core.tasks.{module}"), attribute
    )
    return found


def build_task(recipe: Recipe, *, start_from: Path | None = None) -> RecipeTask:
    """The task of a recipe, with its stores open. Imports torch.

    Args:
        recipe: resolved.
        start_from: a model folder, or a released checkpoint file, whose weights it starts from.

    Raises:
        DataError: a store is missing or damaged.
    """
    return task_class(recipe.task)(recipe, start_from)
