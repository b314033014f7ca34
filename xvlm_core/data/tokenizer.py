"""BERT word pieces without a framework: text to ids and back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from xvlm_core.errors import CheckpointError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

FILE_NAME = "tokenizer.json"

_SURROGATE = re.compile("[\ud800-\udfff]")
_UNUSED = re.compile(r"\[unused\d+\]")
_CONTINUES = "##"
_MAX_WORD_CHARACTERS = 100
_JOINED = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")),
)
"""What ``clean_up_tokenization_spaces`` of transformers replaces, in its order."""


@dataclass(frozen=True)
class Encoded:
    """A text as ids, CLS in front, no SEP.

    ``starts_word[i]`` is False where token i continues a word; ``cut`` tokens did not fit.
    """

    ids: tuple[int, ...]
    starts_word: tuple[bool, ...]
    cut: int


class Tokenizer:
    """Lower-casing BERT tokenizer; equal to transformers' ``BertTokenizer``. Picklable.

    Make one with ``from_vocab``, ``from_file`` or ``bert_base_uncased``.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, where: str | None = None) -> None:
        """Wrap a WordPiece tokenizer of the ``tokenizers`` library.

        Raises:
            CheckpointError: a special token is missing, or ids are not 0..V-1.
        """
        backend.no_truncation()
        backend.no_padding()
        backend.decoder = decoders.WordPiece(prefix=_CONTINUES, cleanup=False)
        vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
        if missing:
            raise CheckpointError(f"vocabulary lacks {', '.join(missing)}", where=where)
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise CheckpointError("vocabulary ids are not 0, 1, 2, ... each once", where=where)
        self._backend = backend
        self._vocabulary = vocabulary
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            vocabulary[token] for token in SPECIAL_TOKENS
        )

    @classmethod
    def from_vocab(cls, lines: Sequence[str], *, where: str | None = None) -> Tokenizer:
        """Make one from the lines of a BERT ``vocab.txt``; the id is the line number from 0.

        Raises:
            CheckpointError: a line stands twice, or a special token is missing.
        """
        vocabulary = {line: number for number, line in enumerate(lines)}
        if len(vocabulary) != len(lines):
            again = next(line for number, line in enumerate(lines) if vocabulary[line] != number)
            raise CheckpointError(f"vocabulary has {again!r} twice", where=where)
        missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
        if missing:
            raise CheckpointError(f"vocabulary lacks {', '.join(missing)}", where=where)
        backend = tokenizers.Tokenizer(
            models.WordPiece(
                vocabulary,
                unk_token="[UNK]",
                max_input_chars_per_word=_MAX_WORD_CHARACTERS,
                continuing_subword_prefix=_CONTINUES,
            )
        )
        backend.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True
        )
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.add_special_tokens(list(SPECIAL_TOKENS))
        return cls(backend, where=where)

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Read a ``tokenizer.json``, a ``vocab.txt``, or a folder that has one of them.

        Raises:
            CheckpointError: missing, damaged, or no BERT tokenizer.
        """
        if path.is_dir():
            found = [path / name for name in (FILE_NAME, "vocab.txt") if (path / name).is_file()]
            if not found:
                raise CheckpointError("no tokenizer.json and no vocab.txt", where=str(path))
            path = found[0]
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"tokenizer cannot be read: {error}", where=str(path)) from error
        if path.suffix != ".json":
            return cls.from_vocab(text.rstrip("\n").split("\n"), where=str(path))
        try:
            kind = json.loads(text)["model"].get("type", "WordPiece")
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"damaged tokenizer: {error}", where=str(path)) from error
        if kind != "WordPiece":
            raise CheckpointError(
                f"tokenizer of kind {kind}; only BERT's WordPiece is known", where=str(path)
            )
        return cls(backend, where=str(path))

    @classmethod
    def bert_base_uncased(cls) -> Tokenizer:
        """The tokenizer of BERT-base-uncased and of all official X-VLM weights, 30,522 ids."""
        vocabulary = files("xvlm_core.data").joinpath("vocab", "bert_base_uncased.txt")
        return cls.from_vocab(vocabulary.read_text(encoding="utf-8").rstrip("\n").split("\n"))

    def save(self, folder: Path) -> Path:
        """Write ``tokenizer.json`` into an existing folder; returns its path."""
        path = folder / FILE_NAME
        path.write_text(self._backend.to_str(), encoding="utf-8")
        return path

    def encode(self, text: str, max_tokens: int) -> Encoded:
        """Text to ids: CLS in front, no SEP, at most ``max_tokens`` ids with CLS."""
        if not text.isascii():  # lone surrogates cannot cross into the library
            text = _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
        return self._framed(self._backend.encode(text, add_special_tokens=False).ids, max_tokens)

    def encode_pieces(self, pieces: Sequence[str], max_tokens: int) -> Encoded:
        """Word pieces as they stand to ids (unknown ones: [UNK]); as :meth:`encode` otherwise."""
        unknown = self.unk_id
        return self._framed([self._vocabulary.get(p, unknown) for p in pieces], max_tokens)

    def _framed(self, pieces: list[int], max_tokens: int) -> Encoded:
        ids = (self.cls_id, *pieces[: max_tokens - 1])
        continues = self._continuations
        return Encoded(
            ids=ids,
            starts_word=tuple(token not in continues for token in ids),
            cut=len(pieces) + 1 - len(ids),
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text: pieces and punctuation joined to words; special tokens left out."""
        special = self.special_ids
        text: str = self._backend.decode([int(i) for i in ids if int(i) not in special])
        for spaced, joined in _JOINED:
            text = text.replace(spaced, joined)
        return text

    def token(self, token_id: int) -> str:
        """The piece with this id."""
        piece: str | None = self._backend.id_to_token(token_id)
        assert piece is not None, token_id
        return piece

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self._vocabulary)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text: [PAD], [UNK], [CLS], [SEP], [MASK] and [unusedN]."""
        return frozenset(
            number
            for token, number in self._vocabulary.items()
            if token in SPECIAL_TOKENS or _UNUSED.fullmatch(token)
        )

    @cached_property
    def _continuations(self) -> frozenset[int]:
        return frozenset(
            number for token, number in self._vocabulary.items() if token.startswith(_CONTINUES)
        )
