"""First weights from elsewhere: an ImageNet picture encoder, and BERT (official.md 1.5).

Sources are local files or folders, or hub ids where downloading is allowed. Nothing is skipped
silently: a file that lacks a tensor it should have, or holds one that means nothing, is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from xvlm_core.errors import CheckpointError, ConfigError
from xvlm_core.models.sizes import TextConfig, VisionConfig
from xvlm_core.models.xvlm import XVLM
from xvlm_core.weights.hub import may_download
from xvlm_core.weights.official import BUFFERS, TIED, bert_name, shift_downsample
from xvlm_core.weights.reading import (
    TORCH_SUFFIXES,
    Note,
    Report,
    account,
    read_state_file,
)

# what a folder or a hub repository is searched for, in this order
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
_OUR_VISION, _OUR_TEXT = "vision.backbone.", "text."
_CROSS = re.compile(r"\.(cross_attention|cross_norm)\.")


# ---------------------------------------------------------------- picture encoder


def load_vision(model: XVLM, source: str | Path, download: bool = False) -> Report:
    """Load ImageNet weights into the picture encoder.

    Reads Microsoft's Swin files (``swin_base_patch4_window7_224_22k.pth``) and timm's Swin and
    ViT files. Classifiers are dropped; position tables are resized where the window or the
    resolution differs.

    Args:
        model: takes the weights; unchanged where an error is raised.
        source: a file, a folder with ``model.safetensors`` or ``pytorch_model.bin``, or a hub id.
        download: allow a hub id to be fetched.

    Returns:
        What became of every tensor.

    Raises:
        ConfigError: a hub id, and ``download`` is false.
        CheckpointError: missing, damaged, or of another architecture.
    """
    path = find_weights(source, download, key="init.vision")
    state = read_state_file(path)
    # Microsoft's files (and timm's before 0.9) number a downsampling by the stage before it
    is_early = any(key.startswith("layers.0.downsample.") for key in state)
    target = _part(model, _OUR_VISION)
    candidates: dict[str, Tensor] = {}
    dropped: list[Note] = []
    unexpected: list[str] = []
    for key, value in state.items():
        name = _OUR_VISION + (shift_downsample(key, 1) if is_early else key)
        if BUFFERS.search(key):
            dropped.append(Note(key, "computed, not stored"))
        elif name in target:
            candidates[name] = value
        elif key.startswith(("head.", "head_dist.")):
            dropped.append(Note(key, "ImageNet classifier"))
        elif model.config.vision.kind == "vit" and key in ("cls_token", "dist_token"):
            dropped.append(Note(key, "this model pools its patches"))
        else:
            unexpected.append(key)
    placed, report = account(str(path), candidates, target, dropped, unexpected)
    report = _with_numbers(report, state)
    report.require_complete(
        f"{path.name} is not {_describe_vision(model.config.vision)}",
        try_="leave init.vision unset, or give weights of this architecture",
    )
    model.load_state_dict(placed.state, strict=False)
    return report


# ---------------------------------------------------------------- text and cross encoder


def load_text(
    model: XVLM,
    source: str | Path,
    download: bool = False,
    *,
    layers: Sequence[int] | None = None,
) -> Report:
    """Load BERT into the text stack: embeddings, every layer by its index, the language head.

    Cross-attention stays random, as does the language head where the file has none; both are
    reported as fresh. The pooler and the next-sentence head are dropped.

    Args:
        model: takes the weights; unchanged where an error is raised.
        source: a file, a folder with ``model.safetensors`` or ``pytorch_model.bin`` (and
            ``config.json``), or a hub id. Names with or without ``bert.``, norms with
            ``weight``/``bias`` or ``gamma``/``beta``.
        download: allow a hub id to be fetched.
        layers: BERT's layer for each layer of the model. None: the same index, and the same
            number of layers. The released code starts 12 text and 6 cross layers from BERT-large
            with ``(*range(12), 13, 15, 17, 19, 21, 23)``.

    Returns:
        What became of every tensor.

    Raises:
        ConfigError: a hub id, and ``download`` is false; a pre-norm model.
        CheckpointError: missing, damaged, no BERT, or of another shape.
    """
    config = model.config.text
    if config.norm_first:
        raise ConfigError(
            "BERT's weights are for post-norm layers; this model has text.norm_first",
            where="init.text",
            try_="leave init.text unset, or set model.overrides to {text: {norm_first: false}}",
        )
    path = find_weights(source, download, key="init.text")
    warnings = _check_bert_config(path, config)
    state = read_state_file(path)
    named, dropped = _bert_names(state, str(path))
    _check_layers(path, named, config.num_layers, layers)
    names = {ours: _layer_name(bert_name(ours), layers) for ours in _part(model, _OUR_TEXT)}

    has_head = any(name.startswith("cls.predictions.") for name in named)
    fresh: dict[str, str] = {}
    candidates: dict[str, Tensor] = {}
    target = _part(model, _OUR_TEXT)
    used: set[str] = set()
    for ours, name in names.items():
        if _CROSS.search(ours):
            fresh[ours] = "BERT has no cross-attention"
        elif name in named:
            candidates[ours] = named[name][1]
            used.add(name)
        elif not has_head and ours.startswith("text.lm_head."):
            fresh[ours] = "the file has no language head"
    unexpected: list[str] = []
    for name, (key, _) in named.items():
        if name in used:
            continue
        if model.text.lm_head is None and name.startswith("cls.predictions."):
            dropped.append(Note(key, "this model carries no language head"))
        elif layers is not None and name.startswith("bert.encoder.layer."):
            dropped.append(Note(key, "not among the layers asked for"))
        else:
            unexpected.append(key)
    placed, report = account(str(path), candidates, target, dropped, unexpected, fresh)
    report = replace(_with_numbers(report, state), warnings=tuple(warnings))
    report.require_complete(
        f"{path.name} is not a BERT of this model's shape: width {config.hidden_size}, "
        f"{config.num_layers} layers, vocabulary {config.vocab_size}",
        try_="leave init.text unset, or set model.overrides and text.tokenizer as in the file",
    )
    model.load_state_dict(placed.state, strict=False)
    return report


def _bert_names(
    state: Mapping[str, Tensor], source: str
) -> tuple[dict[str, tuple[str, Tensor]], list[Note]]:
    """Tensors by BERT's names of today, with the key in the file; and what was dropped."""
    named: dict[str, tuple[str, Tensor]] = {}
    dropped: list[Note] = []
    for key, value in state.items():
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", key)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        if name.startswith(("embeddings.", "encoder.", "pooler.")):
            name = f"bert.{name}"
        if BUFFERS.search(name):
            dropped.append(Note(key, "computed, not stored"))
        elif name.startswith("bert.pooler."):
            dropped.append(Note(key, "the model has no pooler"))
        elif name.startswith("cls.seq_relationship."):
            dropped.append(Note(key, "the model predicts no next sentence"))
        elif name in named:
            raise CheckpointError(
                f"{named[name][0]} and {key} are the same tensor of BERT",
                where=source,
                try_="give a file with one set of names",
            )
        else:
            named[name] = key, value
    for twin, original in TIED.items():
        if twin not in named:
            continue
        if original in named:
            dropped.append(Note(named.pop(twin)[0], f"tied to {named[original][0]}"))
        else:
            named[original] = named.pop(twin)
    return named, dropped


def _layer_name(name: str | None, layers: Sequence[int] | None) -> str | None:
    """BERT's name of a parameter, in the layer it is to start from."""
    if name is None or layers is None:
        return name
    return re.sub(
        r"(?<=^bert\.encoder\.layer\.)\d+",
        lambda layer: str(layers[int(layer[0])]),
        name,
    )


def _check_layers(
    path: Path, named: Mapping[str, Any], num_layers: int, layers: Sequence[int] | None
) -> None:
    matches = [re.match(r"bert\.encoder\.layer\.(\d+)\.", name) for name in named]
    found = {int(match[1]) for match in matches if match}
    if not found:
        raise CheckpointError(
            f"{path.name} is no BERT: it has no tensor of encoder.layer",
            where=str(path),
            try_="give a BERT file or folder in Hugging Face form",
        )
    if layers is None and len(found) != num_layers:
        raise CheckpointError(
            f"{path.name} has {len(found)} layers, the model's text stack has {num_layers}",
            where=str(path),
            try_=f"set model.overrides to {{text: {{num_layers: {len(found)}}}}}",
        )
    if layers is not None and (len(layers) != num_layers or not set(layers) <= found):
        raise CheckpointError(
            f"layers {list(layers)} do not name one of the {len(found)} layers of {path.name} "
            f"for each of the model's {num_layers}",
            where=str(path),
            try_=f"give {num_layers} numbers from 0 to {max(found)}",
        )


def _check_bert_config(path: Path, config: TextConfig) -> list[str]:
    """Compare what no tensor's shape shows; returns what could not be checked."""
    file = path.parent / "config.json"
    if path.name not in WEIGHT_FILES or not file.is_file():
        return [
            f"no config.json beside {path.name}: {config.num_heads} heads, epsilon "
            f"{config.layer_norm_eps:g} and exact GELU are taken for granted"
        ]
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise CheckpointError(
            f"config.json is damaged: {error}", where=str(file), try_="fetch the folder again"
        ) from error
    expected = {
        "model_type": "bert",
        "num_attention_heads": config.num_heads,
        "hidden_act": "gelu",
        "layer_norm_eps": config.layer_norm_eps,
        "position_embedding_type": "absolute",
    }
    different = [
        f"{key}: {found[key]} in the file, {value} in the model"
        for key, value in expected.items()
        if found.get(key, value) != value
    ]
    if different:
        raise CheckpointError(
            "config.json describes another text encoder than the model's",
            where=str(file),
            details=different,
            try_="leave init.text unset, or set model.overrides to {text: {...}} as in the file",
        )
    return []


# ---------------------------------------------------------------- shared


def _part(model: XVLM, prefix: str) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if name.startswith(prefix)}


def _with_numbers(report: Report, state: Mapping[str, Tensor]) -> Report:
    """The report, which then also knows the sizes of the file's own tensors."""
    theirs = {key: value.numel() for key, value in state.items()}
    return replace(report, numbers={**theirs, **report.numbers})


def find_weights(source: str | Path, download: bool, *, key: str) -> Path:
    """The file of weights that a source stands for.

    Args:
        source: a file, a folder, or a hub id (``name`` or ``owner/name``).
        download: allow fetching, as ``XVLM_DOWNLOAD=1`` does; without it a hub id is found only if
            it was fetched before.
        key: the recipe's key, for messages.

    Raises:
        ConfigError: a hub id that is not in the local cache, and ``download`` is false.
        CheckpointError: a path without weights, or the hub has none or cannot be reached.
    """
    download = may_download(download)
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for name in WEIGHT_FILES:
            if (path / name).is_file():
                return path / name
        raise CheckpointError(
            f"the folder {path} holds neither {WEIGHT_FILES[0]} nor {WEIGHT_FILES[1]}",
            where=key,
            try_=f"{key}=/path/to/weights",
        )
    hub_id = re.sub(r"^hf[-_]hub:", "", str(source))
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", hub_id) or path.suffix in _SUFFIXES:
        raise CheckpointError(f"{path} does not exist", where=key, try_=f"{key}=/path/to/weights")
    for name in WEIGHT_FILES:
        found = _from_hub(hub_id, name, download)
        if found is not None:
            _from_hub(hub_id, "config.json", download)  # lies beside it, for the checks
            return found
    if not download:
        raise ConfigError(
            f"{source} is no file or folder here, and nothing is fetched from the hub unless asked",
            where=key,
            try_=f"init.download=true, or {key}=/path/to/weights",
        )
    raise CheckpointError(
        f"{hub_id} on the hub holds neither {WEIGHT_FILES[0]} nor {WEIGHT_FILES[1]}",
        where=key,
        try_=f"{key}=/path/to/weights",
    )


def _from_hub(hub_id: str, name: str, download: bool) -> Path | None:
    """A file of a hub repository, fetched or from the cache; None where there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, name, local_files_only=not download))
    except Exception as error:  # the network fails in as many ways as there are libraries below
        is_local = isinstance(error, LocalEntryNotFoundError)  # also: the hub cannot be reached
        if is_local and not download:
            return None
        if isinstance(error, EntryNotFoundError) and not is_local:
            return None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise CheckpointError(
            f"{hub_id} could not be fetched from the hub: {reason}",
            where=name,
            try_="check the id and the connection, or give a local file or folder",
        ) from error


def _describe_vision(config: VisionConfig) -> str:
    kind = {"swin": "a Swin", "vit": "a ViT"}[config.kind]
    return f"{kind} of this model's shape: width {config.embed_dim}, depths {list(config.depths)}"
