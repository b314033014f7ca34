"""What tasks share when they are built from a recipe: stores, tokenizer, model, weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from xvlm_core.config.schema import Recipe
from xvlm_core.data.samples import SampleSettings
from xvlm_core.data.store import Store
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.errors import CheckpointError, ConfigError, DataError
from xvlm_core.models.sizes import Head, ModelConfig
from xvlm_core.models.xvlm import XVLM
from xvlm_core.tasks.first_weights import FirstWeights, Source, account_for
from xvlm_core.weights.folder import TOKENIZER
from xvlm_core.weights.official import from_official
from xvlm_core.weights.pretrained import load_text, load_vision
from xvlm_core.weights.reading import Note, read_state_file
from xvlm_core.weights.transplant import head_of, load_from_folder, why_fresh


def open_stores(recipe: Recipe, names: Sequence[str]) -> list[Store]:
    """The stores of a recipe, opened.

    Raises:
        DataError: one is missing or damaged.
    """
    return [Store.of_recipe(recipe.data, name) for name in names]


def open_validation(recipe: Recipe) -> list[Store]:
    """The validation stores of a recipe, opened.

    Raises:
        DataError: one is missing or damaged, or none has a record of the validation split: the
            best checkpoint would be chosen on nothing.
    """
    stores = open_stores(recipe, recipe.data.validation)
    split = recipe.data.validation_split
    if stores and not any(len(store.numbers(split)) for store in stores):
        there = sorted({name for store in stores for name in store.manifest.splits})
        raise DataError(
            f"no record of split {split!r} in {', '.join(store.name for store in stores)}; "
            f"there are {', '.join(there)}",
            where="data.validation_split",
            try_=f"data.validation_split={there[0]}" if there else "data.validation=[]",
        )
    return stores


def tokenizer_of(recipe: Recipe, start_from: Path | None = None) -> Tokenizer:
    """The tokenizer of the checkpoint that a run starts from, else the one the recipe names.

    Raises:
        ConfigError: the recipe names a file that is not there.
        CheckpointError: a tokenizer is damaged, or the model folder has none.
    """
    if start_from is not None and start_from.is_dir():
        return _read_tokenizer(start_from / TOKENIZER, "give the folder of a complete checkpoint")
    name = recipe.text.tokenizer
    if name == "bert-base-uncased":
        return Tokenizer.bert_base_uncased()
    if name == "world":
        from xvlm_core.world.grammar import wordpiece_vocabulary

        return Tokenizer.from_vocab(wordpiece_vocabulary())
    if not Path(name).is_file():
        raise ConfigError(
            f"no tokenizer file {name}",
            where="text.tokenizer",
            try_="text.tokenizer=bert-base-uncased  (packaged), or the path of a tokenizer.json",
        )
    return _read_tokenizer(Path(name), "text.tokenizer=bert-base-uncased  (packaged)")


def _read_tokenizer(path: Path, try_: str) -> Tokenizer:
    try:
        return Tokenizer.from_file(path)
    except CheckpointError as error:
        raise CheckpointError(error.what, where=str(path), try_=try_) from error


def sample_settings(recipe: Recipe, config: ModelConfig) -> SampleSettings:
    """How records become samples, from the recipe and the shape of the model."""
    data, text, regions = recipe.data, recipe.text, recipe.data.regions
    official = recipe.compat == "official"
    careful_flip = data.careful_flip
    if careful_flip is None:  # the released code mirrors whatever the text says
        careful_flip = not official or recipe.task in ("grounding", "vqa")
    settings = SampleSettings(
        image_size=config.vision.image_size,
        grid=config.vision.grid,
        max_words=text.max_words,
        max_tokens=token_limit(recipe, config),
        mask_prob=text.mask_prob,
        max_masks=text.max_masks,
        skipgram_prb=text.skipgram_prb,
        skipgram_size=text.skipgram_size,
        augment=data.augment,
        careful_flip=careful_flip,
        compat_official=official,
    )
    if regions is None:
        return settings
    return dataclasses.replace(
        settings,
        max_regions=regions.max_regions,
        kinds=regions.kinds,
        caption=regions.caption,
        min_inside=regions.min_perc_in_image,
        absent=regions.absent,
        tokenized_regions=regions.tokenized,
    )


def token_limit(recipe: Recipe, config: ModelConfig) -> int:
    """Most tokens of a text. The released fine-tuning of these tasks cuts no text."""
    if recipe.compat == "official" and recipe.task in ("grounding", "weak_grounding", "nlvr2"):
        return config.text.max_positions
    return recipe.text.max_tokens


def model_shape(recipe: Recipe, tokenizer: Tokenizer, heads: tuple[Head, ...]) -> ModelConfig:
    """The shape of a recipe's model, with the vocabulary of its tokenizer.

    Raises:
        ConfigError: the model has fewer positions than a text may have tokens.
    """
    config = recipe.model.shape(vocab_size=tokenizer.vocab_size, heads=heads)
    if config.text.max_positions < recipe.text.max_tokens:
        raise ConfigError(
            f"text.max_tokens is {recipe.text.max_tokens}, the model has "
            f"{config.text.max_positions} positions",
            try_=f"text.max_tokens={config.text.max_positions}",
        )
    return config


def initialise(model: XVLM, recipe: Recipe) -> FirstWeights:
    """ImageNet and BERT weights, if the recipe names any. Returns what was done.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit; nothing is skipped silently.
    """
    sources = []
    init = recipe.init
    if init.vision is not None:
        report = load_vision(model, init.vision, init.download)
        sources.append(Source("picture encoder", init.vision, report))
    if init.text is not None:
        report = load_text(model, init.text, init.download)
        sources.append(Source("text and cross encoder", init.text, report))
    return account_for(model, sources)


def start_from_checkpoint(model: XVLM, source: Path) -> FirstWeights:
    """Load a model folder, or a released checkpoint file, into a model that may differ in heads.

    A model of two pictures a text takes each cross layer of a pre-trained one twice, an answer
    decoder takes them as well (:mod:`xvlm_core.weights.transplant`). Position tables are resized to
    the model's picture size. Heads the model lacks are left out, heads the checkpoint lacks stay
    fresh; both are said in what is returned.

    Raises:
        CheckpointError: missing, damaged, or of another size.
    """
    if source.is_dir():
        return _start_from_folder(model, source)
    return _start_from_official(model, source)


def _start_from_folder(model: XVLM, source: Path) -> FirstWeights:
    report = load_from_folder(model, source)
    more = [
        *(str(note) for note in report.converted),
        *_about_heads([note.name for note in report.dropped], [n.name for n in report.fresh]),
    ]
    return account_for(model, [Source("weights", str(source), report)], more)


def _start_from_official(model: XVLM, source: Path) -> FirstWeights:
    converted = from_official(
        read_state_file(source), model.config, strict=False, source=str(source)
    )
    report = converted.report
    missing = [name for name in report.missing if head_of(name)]
    dataclasses.replace(
        report, missing=tuple(name for name in report.missing if not head_of(name))
    ).require_complete(
        f"{source} does not fit this model", try_="model.size=base, or another init.checkpoint"
    )
    model.load_state_dict(converted.state, strict=False)
    report = dataclasses.replace(
        report,
        missing=(),
        fresh=(*report.fresh, *(Note(n, why_fresh(n)) for n in missing)),
    )
    more = _about_heads([], missing)
    return account_for(model, [Source("weights", str(source), report)], more)


def _about_heads(left_out: Sequence[str], fresh: Sequence[str]) -> list[str]:
    lines = []
    for what, names in (("left out", left_out), ("fresh", fresh)):
        heads = sorted({head for name in names if (head := head_of(name))})
        if heads:
            lines.append(f"{what}: {', '.join(heads)}")
    return lines
