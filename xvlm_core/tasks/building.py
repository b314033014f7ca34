"""What tasks share when they are built from a recipe: stores, tokenizer, model, weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from xvlm_core.config.schema import Recipe
from xvlm_core.data.samples import SampleSettings
from xvlm_core.data.store import Store
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.errors import CheckpointError, ConfigError
from xvlm_core.models.sizes import Head, ModelConfig
from xvlm_core.models.xvlm import XVLM
from xvlm_core.weights.folder import TOKENIZER, read_info, read_weights
from xvlm_core.weights.interpolate import resize_positions
from xvlm_core.weights.official import from_official, read_official
from xvlm_core.weights.pretrained import load_text, load_vision


def open_stores(recipe: Recipe, names: Sequence[str]) -> list[Store]:
    """The stores of a recipe, opened.

    Raises:
        DataError: one is missing or damaged.
    """
    return [Store.open(Path(recipe.data.root) / name) for name in names]


def tokenizer_of(recipe: Recipe, start_from: Path | None = None) -> Tokenizer:
    """The tokenizer of the checkpoint that a run starts from, else the one the recipe names.

    Raises:
        ConfigError: the recipe names a file that is not there.
    """
    if start_from is not None and (start_from / TOKENIZER).is_file():
        return Tokenizer.from_file(start_from / TOKENIZER)
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
    return Tokenizer.from_file(Path(name))


def sample_settings(recipe: Recipe, config: ModelConfig) -> SampleSettings:
    """How records become samples, from the recipe and the shape of the model."""
    data, text, regions = recipe.data, recipe.text, recipe.data.regions
    settings = SampleSettings(
        image_size=config.vision.image_size,
        grid=config.vision.grid,
        max_words=text.max_words,
        max_tokens=text.max_tokens,
        mask_prob=text.mask_prob,
        max_masks=text.max_masks,
        skipgram_prb=text.skipgram_prb,
        skipgram_size=text.skipgram_size,
        augment=data.augment,
        careful_flip=data.careful_flip,
        compat_official=recipe.compat == "official",
    )
    if regions is None:
        return settings
    return dataclasses.replace(
        settings,
        max_regions=regions.max_regions,
        caption=regions.caption,
        min_inside=regions.min_perc_in_image,
        absent=regions.absent,
    )


def model_shape(recipe: Recipe, tokenizer: Tokenizer, heads: tuple[Head, ...]) -> ModelConfig:
    """The shape of a recipe's model, with the vocabulary of its tokenizer."""
    config = recipe.model.shape(vocab_size=tokenizer.vocab_size, heads=heads)
    if config.text.max_positions < recipe.text.max_tokens:
        raise ConfigError(
            f"text.max_tokens is {recipe.text.max_tokens}, the model has "
            f"{config.text.max_positions} positions",
            try_=f"text.max_tokens={config.text.max_positions}",
        )
    return config


def initialise(model: XVLM, recipe: Recipe) -> list[str]:
    """ImageNet and BERT weights, if the recipe names any. Returns what was done, a line each.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit; nothing is skipped silently.
    """
    notes = []
    init = recipe.init
    if init.vision is not None:
        report = load_vision(model, init.vision, init.download)
        notes.append(f"picture encoder from {init.vision}: {report.summary()}")
    if init.text is not None:
        report = load_text(model, init.text, init.download)
        notes.append(f"text and cross encoder from {init.text}: {report.summary()}")
    if not notes:
        notes.append("all weights start from random numbers (init.vision and init.text are null)")
    return notes


def start_from_checkpoint(model: XVLM, source: Path) -> list[str]:
    """Load a model folder, or a released checkpoint file, into a model that may differ in heads.

    Position tables are resized to the model's picture size. Heads the model lacks are left out,
    heads the checkpoint lacks stay fresh; both are said in the returned lines.

    Raises:
        CheckpointError: missing, damaged, or of another size.
    """
    if source.is_dir():
        info = read_info(source)
        state = read_weights(source)
        size = info.config.size
    else:
        state = from_official(read_official(source), model.config).state
        size = "official"
    own = model.state_dict()
    state, resized = resize_positions(state, own)
    differing = [
        f"{name}: {tuple(state[name].shape)} in the checkpoint, {tuple(own[name].shape)} here"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    heads = ("itm_head.", "bbox_head.", "vision_proj.", "text_proj.", "temp", "text.lm_head.")
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    differing += [
        f"{name}: not in the checkpoint" for name in missing if not name.startswith(heads)
    ]
    differing += [f"{name}: unknown here" for name in unexpected if not name.startswith(heads)]
    if differing:
        raise CheckpointError(
            f"{source} holds a model of another size ({size}) than the recipe's "
            f"({model.config.size})",
            details=differing[:3],
            try_=f"model.size={size}  (or another --init checkpoint)"
            if size != model.config.size
            else "take image_size and overrides of the run it comes from",
        )
    model.load_state_dict({n: v for n, v in state.items() if n in own}, strict=False)
    notes = [f"weights from {source}"]
    notes += [str(line) for line in resized]
    for what, names in (("left out", unexpected), ("fresh", missing)):
        if names:
            parts = sorted({name.split(".")[0] for name in names})
            notes.append(f"{what}: {', '.join(parts)}")
    return notes
