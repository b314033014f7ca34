"""What the released code calls each tensor: a function of names (official.md 5.2 to 5.6).

The released names come in two forms of the text stack, with ``bert.`` where a language-model head
stands beside it and without where not. The canonical form here has it always.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from xvlm_core.models.sizes import ModelConfig

BUFFERS = re.compile(r"(relative_position_index|attn_mask|embeddings\.position_ids)$")

VISION, OUR_VISION = "vision_encoder.", "vision.backbone."
TEXT, OUR_TEXT = "text_encoder.", "text."
DECODER, OUR_DECODER = "text_decoder.", "decoder."
_BERT_EMBEDDINGS = {
    "word": "word_embeddings",
    "position": "position_embeddings",
    "token_type": "token_type_embeddings",
    "norm": "LayerNorm",
}
_BERT_LAYER = {
    "self_attention.query": "attention.self.query",
    "self_attention.key": "attention.self.key",
    "self_attention.value": "attention.self.value",
    "self_attention.output": "attention.output.dense",
    "self_norm": "attention.output.LayerNorm",
    "cross_attention.query": "crossattention.self.query",
    "cross_attention.key": "crossattention.self.key",
    "cross_attention.value": "crossattention.self.value",
    "cross_attention.output": "crossattention.output.dense",
    "cross_norm": "crossattention.output.LayerNorm",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_BERT_HEAD = {
    "lm_head.dense.weight": "transform.dense.weight",
    "lm_head.dense.bias": "transform.dense.bias",
    "lm_head.norm.weight": "transform.LayerNorm.weight",
    "lm_head.norm.bias": "transform.LayerNorm.bias",
    "lm_head.bias": "bias",
}
# the decoder of a language-model head under its second name: BERT's name -> what it is tied to
TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_LAYER = re.compile(r"(?<=bert\.encoder\.layer\.)\d+(?=\.)")
_CROSS_KEY_VALUE = re.compile(r"\.crossattention\.self\.(key|value)\.")


def bert_name(our_name: str) -> str | None:
    """BERT's name (``bert.`` or ``cls.predictions.``) of a parameter under ``text.``.

    None where BERT has no such parameter (the norms of a pre-norm stack).
    """
    name = our_name.removeprefix(OUR_TEXT)
    if name in _BERT_HEAD:
        return f"cls.predictions.{_BERT_HEAD[name]}"
    module, _, leaf = name.rpartition(".")
    if module.startswith("embeddings."):
        part = _BERT_EMBEDDINGS.get(module.removeprefix("embeddings."))
        return part and f"bert.embeddings.{part}.{leaf}"
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)", module)
    if layer is None or layer[2] not in _BERT_LAYER:
        return None
    return f"bert.encoder.layer.{layer[1]}.{_BERT_LAYER[layer[2]]}.{leaf}"


def shift_downsample(name: str, by: int) -> str:
    """Swin's ``layers.S.downsample`` as ``layers.S+by.downsample``; other names unchanged."""
    return re.sub(
        r"^layers\.(\d+)\.downsample\.",
        lambda stage: f"layers.{int(stage[1]) + by}.downsample.",
        name,
    )


def official_name(our_name: str, *, text: str = TEXT) -> str:
    """The canonical name of a parameter in the official checkpoints.

    Parameters that the official model lacks keep their name below the official prefix.

    Args:
        our_name: in the state dict of a model of ours.
        text: what the text stack is called there (``text_decoder.`` in a captioner).
    """
    if our_name.startswith(OUR_VISION):
        return VISION + shift_downsample(our_name.removeprefix(OUR_VISION), -1)
    for ours, official in ((OUR_TEXT, text), (OUR_DECODER, DECODER)):
        if our_name.startswith(ours):
            name = our_name.removeprefix(ours)
            return official + (bert_name(name) or name)
    return our_name


def text_prefix(config: ModelConfig) -> str:
    """What the released code calls the text stack of a model of this shape."""
    return DECODER if config.text.causal else TEXT


def with_bert(key: str) -> str:
    """The canonical form of a key."""
    name = key.removeprefix(TEXT)
    if name == key or name.startswith(("bert.", "cls.")):
        return key
    return f"{TEXT}bert.{name}"


def as_written(name: str, config: ModelConfig) -> str:
    """A canonical name as the released model of this shape has it in its files."""
    if "masked_lm" in config.heads:
        return name
    return name.replace(f"{TEXT}bert.", TEXT, 1)


def twins(config: ModelConfig) -> dict[str, str]:
    """Canonical names that stand for a tensor that is there under another name.

    The decoder of a language-model head is the word embeddings; the two layers of a pair that
    looks at two pictures share the keys and values of their cross-attention.
    """
    heads = [text_prefix(config)] if "masked_lm" in config.heads else []
    heads += [DECODER] if config.decoder_layers else []
    found = {p + twin: p + original for p in heads for twin, original in TIED.items()}
    if config.text.pictures == 2:
        layer = f"{TEXT}bert.encoder.layer.{{}}.crossattention.self.{{}}.{{}}"
        for index in range(config.text.fusion_layer, config.text.num_layers, 2):
            for part in ("key", "value"):
                for leaf in ("weight", "bias"):
                    found[layer.format(index + 1, part, leaf)] = layer.format(index, part, leaf)
    return found


@dataclass(frozen=True)
class Renaming:
    """From the keys of a file to canonical names of the model that takes it (official.md 5.3).

    A file of the model's own kind keeps its names. From a pre-training file (or a retrieval or
    grounding one) a captioner takes the text stack as its decoder; NLVR2 takes each cross layer
    twice; VQA takes the cross layers for its answer decoder, too.
    """

    config: ModelConfig
    is_own_kind: bool

    @classmethod
    def of(cls, keys: Iterable[str], config: ModelConfig) -> Renaming:
        """For the keys of a file."""
        own = DECODER if config.text.causal or config.decoder_layers else ("cls_head.", "ta_head.")
        is_plain = not (config.text.causal or config.decoder_layers or config.text.pictures == 2)
        return cls(config, is_plain or any(key.startswith(own) for key in keys))

    def __call__(self, key: str) -> Iterator[str]:
        """The canonical names that a key feeds."""
        name = with_bert(key)
        text = self.config.text
        if self.is_own_kind or not name.startswith(TEXT):
            yield name
        elif text.causal:
            yield DECODER + name.removeprefix(TEXT)
        elif text.pictures == 2:
            yield from self._twice(name)
        else:
            yield from self._encoder_and_decoder(name)

    def _twice(self, name: str) -> Iterator[str]:
        found, first = _LAYER.search(name), self.config.text.fusion_layer
        if found is None or int(found[0]) < first:
            yield name
            return
        for turn in (0, 1):
            yield _LAYER.sub(str(first + 2 * (int(found[0]) - first) + turn), name)

    def _encoder_and_decoder(self, name: str) -> Iterator[str]:
        decoders = DECODER + name.removeprefix(TEXT)
        if name.startswith(f"{TEXT}cls."):
            yield decoders
            return
        yield name
        found, first = _LAYER.search(name), self.config.text.fusion_layer
        if found is None:
            yield decoders
        elif int(found[0]) >= first:
            # keys and values of pictures do not fit the questions that a decoder looks at
            fits = self.config.vision.width == self.config.text.hidden_size
            if fits or not _CROSS_KEY_VALUE.search(name):
                yield _LAYER.sub(str(int(found[0]) - first), decoders)
