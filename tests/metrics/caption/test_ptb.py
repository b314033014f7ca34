"""Tokens of captions: equal to the Java tokeniser's, recorded ones and, where it runs, live."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.metrics.caption.hard import strings
from tests.metrics.caption.java_tokens import alone, java_tokens
from xvlm_core.metrics.caption import external
from xvlm_core.metrics.caption.ptb import PUNCTUATION, tokenise

RECORDED = json.loads((Path(__file__).parent / "ptb_tokens.json").read_text(encoding="utf-8"))
HARD = 3000
MAY_DIFFER = 0.001


def test_tokens_equal_the_recorded_ones_of_the_java_tokeniser():
    assert len(RECORDED) > 150
    for text, tokens in RECORDED:
        assert tokenise(text) == tokens, text


def test_ends_of_lines_are_spaces():
    for end in ("\n", "\r\n", "\r", "\u2028", "\x0b", "\x0c"):
        assert tokenise(f"a man{end}and 2 dogs.{end}") == ["a", "man", "and", "2", "dogs"]


def test_a_token_is_the_same_whatever_other_words_stand_around_it():
    # words that nothing around them can change are looked up, the others are scanned
    for word in ("man", "man's", "can't", "cannot", "O'Brien", "aa&bb", "'em", '"so"', "black-and"):
        alone_, among = tokenise(word), tokenise(f"x {word} 2 é {word} {word}")
        assert among == ["x", *alone_, "2", "é", *alone_, *alone_]


def test_nothing_of_the_punctuation_is_left():
    for text in strings(300, seed=2):
        assert not PUNCTUATION & set(tokenise(text))


def test_a_surrogate_by_itself_is_no_trouble():
    assert tokenise("a \ud83d b") == ["a", "b"]
    assert tokenise("http://x\ud83d\U0001f600y") != []


def test_time_grows_with_the_length_of_a_text_and_not_with_its_square():
    texts = [piece * 4_000 for piece in ("a", "a.", "<a ", "a@", "www.", "(555", "a'", "é-", "1,")]
    program = (
        "import sys, json; from xvlm_core.metrics.caption.ptb import tokenise\n"
        "for text in json.load(sys.stdin): tokenise(text)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(texts).encode(), check=True, timeout=60
    )


@dataclass(frozen=True)
class Live:
    captions: list[str]
    of_captions: list[list[str]]
    hard: list[str]
    of_hard: list[list[str]]


@pytest.fixture(scope="module")
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Live:
    """What the Java tokeniser says to real captions and to hard strings, in one run."""
    pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    problem = external.java_problem()
    if problem is not None:
        pytest.skip(problem)
    folder = request.config.rootpath.parent / "shared" / "data" / "coco" / "annotations"
    captions = [
        annotation["caption"]
        for file in sorted(folder.glob("captions_*.json"))
        for annotation in json.loads(file.read_text(encoding="utf-8"))["annotations"]
    ]
    hard = strings(HARD)
    tokens = java_tokens([*captions, *alone(hard)], tmp_path_factory.mktemp("java"))
    return Live(captions, tokens[: len(captions)], hard, tokens[len(captions) :: 2])


def test_real_captions_have_the_tokens_of_the_java_tokeniser(live: Live):
    if not live.captions:
        pytest.skip("no ../shared/data/coco beside the repository")
    assert [tokenise(caption) for caption in live.captions] == live.of_captions


def test_hard_strings_have_the_tokens_of_the_java_tokeniser(live: Live):
    different = [
        (text, tokens, ours)
        for text, tokens in zip(live.hard, live.of_hard, strict=True)
        for ours in [tokenise(text)]
        if ours != tokens
    ]
    assert len(different) < MAY_DIFFER * HARD, different


def test_recorded_tokens_are_those_of_the_java_tokeniser(live: Live, tmp_path: Path):
    texts = [text for text, _ in RECORDED]
    assert java_tokens(alone(texts), tmp_path)[::2] == [tokens for _, tokens in RECORDED]
