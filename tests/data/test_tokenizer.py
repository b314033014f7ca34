from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path

import pytest

from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.errors import CheckpointError

ODD = [
    "a man wearing backpack",
    "Ünïcode Café ÀÉ ß İ ŉ",
    "日本語 text 한국어 조사 नमस्ते",
    "[MASK] is [CLS] [mask] A[SEP]B [PAD] [unused5]",
    "x" * 100,
    "x" * 101,
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "don't e-mail a.b@c.de, 10:30 (50%)",
    "\U0001f600 emoji \U0001f468\u200d\U0001f469",
    "a\u200bb\x00c\ufffd",
    "",
    "   ",
    "½ ™ ① ﬁ",
    "tab\tnew\nline\u2028x\u3000y",
    "## ##s #",
    "a\u0301e\u0301",
]


@pytest.fixture(scope="module")
def bert() -> Tokenizer:
    return Tokenizer.bert_base_uncased()


def test_word_pieces_are_encoded_as_they_stand(bert: Tokenizer) -> None:
    whole = bert.encode("an antidisestablishmentarianist", 40)
    pieces = [bert.token(token) for token in whole.ids[1:]]
    assert any(piece.startswith("##") for piece in pieces)
    assert bert.encode_pieces(pieces, 40) == whole
    cut = bert.encode_pieces(pieces, 3)
    assert (cut.ids, cut.cut) == (whole.ids[:3], len(pieces) - 2)
    assert bert.encode_pieces(["Dog", "dog"], 9).ids == (bert.cls_id, bert.unk_id, 3899)


def test_vocabulary_is_that_of_bert_base_uncased(bert: Tokenizer) -> None:
    assert bert.vocab_size == 30522
    assert (bert.pad_id, bert.unk_id, bert.cls_id, bert.sep_id, bert.mask_id) == (
        0,
        100,
        101,
        102,
        103,
    )
    assert bert.encode("hello world", 9).ids == (101, 7592, 2088)


def test_ids_and_text_equal_those_of_transformers(bert: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text(
        "\n".join(bert.token(i) for i in range(bert.vocab_size)) + "\n", encoding="utf-8"
    )
    reference = transformers.BertTokenizer(str(vocabulary), do_lower_case=True)
    for text in ODD:
        ids = reference.encode(text, add_special_tokens=False)
        assert list(bert.encode(text, 10_000).ids[1:]) == ids, text
    for text in ODD:
        ids = reference.encode(text, add_special_tokens=False)
        assert bert.decode(ids) == reference.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=True
        )


def test_cls_in_front_no_sep_and_cut_to_max_tokens(bert: Tokenizer) -> None:
    encoded = bert.encode("one two three four five", 4)
    assert encoded.ids == bert.encode("one two three", 40).ids
    assert encoded.ids[0] == bert.cls_id
    assert bert.sep_id not in encoded.ids
    assert encoded.cut == 2
    assert bert.encode("one two three", 4).cut == 0
    assert bert.encode("word " * 10_000, 40).cut == 9_961


def test_continued_words_are_marked(bert: Tokenizer) -> None:
    encoded = bert.encode("a snowboarder ## rides", 40)
    pieces = [bert.token(i) for i in encoded.ids]
    assert pieces[:4] == ["[CLS]", "a", "snow", "##board"]
    assert encoded.starts_word == tuple(not piece.startswith("##") for piece in pieces)
    assert not all(encoded.starts_word)


def test_decoding_leaves_out_special_tokens(bert: Tokenizer) -> None:
    ids = (*bert.encode("a snowboarder rides", 40).ids, bert.sep_id, bert.pad_id, bert.pad_id)
    assert bert.decode(ids) == "a snowboarder rides"


def test_special_ids_are_those_that_stand_for_no_text(bert: Tokenizer) -> None:
    assert {0, 100, 101, 102, 103, 1, 99, 104, 998} <= bert.special_ids
    assert len(bert.special_ids) == 999
    assert 999 not in bert.special_ids


def test_lone_surrogates_do_not_crash(bert: Tokenizer) -> None:
    assert bert.encode("lone \ud800 surrogate", 9).ids == bert.encode("lone surrogate", 9).ids


def test_travels_to_other_processes(bert: Tokenizer) -> None:
    there = pickle.loads(pickle.dumps(bert))
    assert there.encode("a snowboarder rides", 9) == bert.encode("a snowboarder rides", 9)
    assert there.special_ids == bert.special_ids


def test_saved_and_read_again_gives_the_same_ids(bert: Tokenizer, tmp_path: Path) -> None:
    path = bert.save(tmp_path)
    assert path == tmp_path / "tokenizer.json"
    for again in (Tokenizer.from_file(path), Tokenizer.from_file(tmp_path)):
        assert [again.encode(t, 30) for t in ODD] == [bert.encode(t, 30) for t in ODD]


def test_reads_a_hugging_face_file_without_its_padding_and_truncation(tmp_path: Path) -> None:
    small = Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "cat"])
    content = json.loads(small.save(tmp_path).read_text())
    content["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    content["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer.from_file(tmp_path).encode("Red cat red", 9).ids == (2, 5, 6, 5)


def test_vocab_file_gives_line_numbers_as_ids(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\n##dish\n")
    tokenizer = Tokenizer.from_file(path)
    assert tokenizer.encode("reddish blue", 9).ids == (2, 5, 6, 1)
    assert tokenizer.encode("reddish blue", 9).starts_word == (True, True, False, True)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\nred\n", r"lacks \[MASK\]"),
        ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\nred\n", "'red' twice"),
        ("tokenizer.json", "{", "damaged"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "BPE|damaged"),
    ],
)
def test_unusable_files_are_checkpoint_errors(
    tmp_path: Path, name: str, content: str, what: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(CheckpointError, match=what) as error:
        Tokenizer.from_file(path)
    assert error.value.where == str(path)


def test_missing_files_are_checkpoint_errors(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "tokenizer.json", tmp_path / "vocab.txt"):
        with pytest.raises(CheckpointError):
            Tokenizer.from_file(path)


def test_encoding_warns_of_nothing(bert: Tokenizer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bert.encode("a" * 5000, 512)
