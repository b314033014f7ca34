from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.inference.conftest import MakeModel, picture
from xvlm_core.data import augment
from xvlm_core.data.images import read_picture
from xvlm_core.errors import CheckpointError, UsageError
from xvlm_core.inference import retriever as module
from xvlm_core.inference.retriever import Match, Retriever
from xvlm_core.inference.search_index import Entry, SearchIndex
from xvlm_core.models.packing import PackedTexts

COLOURS, FORMS = ("red", "blue", "green", "large"), ("circle", "square", "left", "circles")
TEXTS = [f"{colour} {form}" for colour in COLOURS for form in FORMS]
"""Sixteen texts of one to three tokens."""


@pytest.fixture(scope="module")
def retriever(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    folder = make_model(tmp_path_factory.mktemp("models") / "pretrained", task="pretrain")
    return Retriever.from_folder(folder, "cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shots")
    for number in range(20):
        picture(40 + number, 60 - number, number).save(root / f"{number:02}.png")
    return root


@pytest.fixture(scope="module")
def index(retriever: Retriever, root: Path) -> SearchIndex:
    files = sorted(root.iterdir())
    vectors = retriever.picture_vectors([read_picture(file) for file in files])
    return SearchIndex(tuple(Entry(file.name, 1, 1, 1, 1) for file in files), vectors)


@dataclass(frozen=True)
class Pair:
    """What the model says of a text and a picture that are all it was given."""

    similarity: float
    probability: float
    log_odds: float
    box_cxcywh: list[float]


@torch.no_grad()
def alone(retriever: Retriever, path: Path, text: str) -> Pair:
    model = retriever.model
    pixels = augment.normalise(augment.test_picture(read_picture(path), 64))
    ids = retriever.tokenizer.encode(text, 6).ids
    patches = model.encode_pictures(torch.from_numpy(pixels)[None])
    states = model.encode_texts(PackedTexts.from_lists([ids]))
    views, first = model.whole(1), torch.zeros(1, dtype=torch.int64)
    similarity = model.picture_features(patches, views) @ model.text_features(states.first()).T
    fused = model.fuse(states, patches, views, first).first()
    logits = model.match_logits(fused)[0].double()
    return Pair(
        similarity.item(),
        logits.softmax(-1)[1].item(),
        (logits[1] - logits[0]).item(),
        model.boxes(fused)[0].tolist(),
    )


def read(retriever: Retriever, texts: list[str]) -> list:  # type: ignore[type-arg]
    return [retriever.read(text) for text in texts]


@dataclass
class Counts:
    """What the encoders were given."""

    pictures: int = 0
    texts: int = 0
    pairs: int = 0
    fuse_calls: list[int] = field(default_factory=list)


@contextlib.contextmanager
def counted(retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counts]:
    counts = Counts()
    model = retriever.model
    encode_pictures, encode_texts, fuse = model.encode_pictures, model.encode_texts, model.fuse

    def pictures(pixels_ICHW):  # type: ignore[no-untyped-def]
        counts.pictures += len(pixels_ICHW)
        return encode_pictures(pixels_ICHW)

    def texts(packed):  # type: ignore[no-untyped-def]
        counts.texts += packed.packing.n_texts
        return encode_texts(packed)

    def fused(states, patches, views, picture_B):  # type: ignore[no-untyped-def]
        counts.pairs += states.packing.n_texts
        counts.fuse_calls.append(len(patches))
        return fuse(states, patches, views, picture_B)

    with monkeypatch.context() as patch:
        patch.setattr(model, "encode_pictures", pictures)
        patch.setattr(model, "encode_texts", texts)
        patch.setattr(model, "fuse", fused)
        yield counts


def assert_same(answers: tuple[Match, ...], expected: list[tuple[int, Pair]]) -> None:
    assert [match.number for match in answers] == [number for number, _ in expected]
    for match, (_, pair) in zip(answers, expected, strict=True):
        assert match.similarity == pytest.approx(pair.similarity, abs=1e-5)
        assert match.probability == pytest.approx(pair.probability, abs=1e-5)


# ---------------------------------------------------------------- text to pictures


@pytest.mark.parametrize("candidates", [3, 7, 20])
def test_the_best_by_similarity_are_ordered_by_the_cross_encoder(
    retriever: Retriever,
    index: SearchIndex,
    root: Path,
    candidates: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CANDIDATES", candidates)
    texts = TEXTS[:3]
    found = retriever.search(read(retriever, texts), index, root, top=3)
    orders = set()
    for text, answers in zip(texts, found.answers, strict=True):
        pairs = [(n, alone(retriever, root / e.path, text)) for n, e in enumerate(index.entries)]
        similar = sorted(pairs, key=lambda pair: -pair[1].similarity)[:candidates]
        expected = sorted(similar, key=lambda pair: -pair[1].log_odds)[:3]
        assert_same(answers, expected)
        orders.add(tuple(n for n, _ in expected))
    assert len(orders) > 1, "the texts have different answers"
    assert found.problems == ()


def test_more_answers_than_candidates_are_all_looked_at(
    retriever: Retriever, index: SearchIndex, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CANDIDATES", 2)
    ((*answers,),) = retriever.search(read(retriever, TEXTS[:1]), index, root, top=9).answers
    assert len(answers) == 9
    assert all(match.probability is not None for match in answers)
    (everything,) = retriever.search(read(retriever, TEXTS[:1]), index, root, top=99).answers
    assert len(everything) == 20


def test_how_texts_are_put_into_calls_does_not_change_answers(
    retriever: Retriever, index: SearchIndex, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = read(retriever, [*TEXTS, "the large red square", "s"])
    whole = retriever.search(texts, index, root, top=4)
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 5)
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 4)
    monkeypatch.setattr(module, "BATCH", 3)
    split = retriever.search(texts, index, root, top=4)
    for answers, others in zip(whole.answers, split.answers, strict=True):
        assert [match.number for match in answers] == [match.number for match in others]
        for match, other in zip(answers, others, strict=True):
            assert match.similarity == pytest.approx(other.similarity, abs=1e-5)
            assert match.probability == pytest.approx(other.probability, abs=1e-5)


def test_many_texts_in_one_call_share_the_encoders(
    retriever: Retriever, index: SearchIndex, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty texts: at most a tenth of what sixty calls encode, and the same answers."""
    texts = read(retriever, [f"{text}{end}" for text in TEXTS for end in ("", " of", " s", " the")])
    texts = texts[:60]
    with counted(retriever, monkeypatch) as together:
        found = retriever.search(texts, index, root, top=5)
    with counted(retriever, monkeypatch) as one_by_one:
        for text, answers in zip(texts, found.answers, strict=True):
            (single,) = retriever.search([text], index, root, top=5).answers
            assert [m.number for m in answers] == [m.number for m in single]
    assert together.pictures == 20, "each picture once"
    assert together.texts == 60, "each text once"
    assert one_by_one.pictures >= 10 * together.pictures
    assert one_by_one.pairs == together.pairs == 60 * 20
    # keys and values of a picture are made once: two pictures with their sixty texts a call
    assert together.fuse_calls == [2] * 10
    assert sum(one_by_one.fuse_calls) == 60 * 20


def test_a_text_that_comes_twice_is_encoded_once(
    retriever: Retriever, index: SearchIndex, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted(retriever, monkeypatch) as counts:
        found = retriever.search(
            read(retriever, ["red circle", "blue", "Red circle!"]), index, root, 2
        )
    assert counts.texts == 2
    assert found.answers[0] == found.answers[2] != found.answers[1]


def test_a_picture_that_is_gone_is_named_and_left_out(
    retriever: Retriever, index: SearchIndex, root: Path, tmp_path: Path
) -> None:
    for entry in index.entries[1:]:
        (tmp_path / entry.path).write_bytes((root / entry.path).read_bytes())
    found = retriever.search(read(retriever, TEXTS[:2]), index, tmp_path, top=20)
    assert found.problems == (f"picture {tmp_path / '00.png'}: missing",)
    for answers in found.answers:
        assert sorted(match.number for match in answers) == list(range(1, 20))


def test_the_part_of_the_picture_is_the_box_of_the_text(
    retriever: Retriever, index: SearchIndex, root: Path
) -> None:
    ask = read(retriever, TEXTS[:1])
    (plain,) = retriever.search(ask, index, root, top=3).answers
    assert [match.box_xyxy_px for match in plain] == [None] * 3
    (answers,) = retriever.search(ask, index, root, top=20, region=True).answers
    assert len({match.box_xyxy_px for match in answers}) == 20
    for match in answers:
        width, height = read_picture(root / index.entries[match.number].path).size
        cx, cy, w, h = alone(
            retriever, root / index.entries[match.number].path, TEXTS[0]
        ).box_cxcywh
        expected = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
        assert match.box_xyxy_px is not None
        for value, share, side in zip(
            match.box_xyxy_px, expected, (width, height) * 2, strict=True
        ):
            assert value == pytest.approx(min(max(share * side, 0), side), abs=1e-3)
        assert json.loads(json.dumps(match.to_json()))["box_xyxy_px"] == list(match.box_xyxy_px)


# ---------------------------------------------------------------- picture to texts


@pytest.mark.parametrize("candidates", [2, 5, 40])
def test_the_texts_of_each_picture(
    retriever: Retriever, root: Path, candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CANDIDATES", candidates)
    monkeypatch.setattr(module, "BATCH", 2)
    files = sorted(root.iterdir())[:3]
    asked = [TEXTS[:6], TEXTS[4:9], []]
    answers = retriever.rank(files, [read(retriever, texts) for texts in asked]).answers
    assert answers[2] == ()
    for file, texts, row in zip(files[:2], asked[:2], answers[:2], strict=True):
        assert row is not None
        pairs = list(enumerate(alone(retriever, file, text) for text in texts))
        similar = sorted(pairs, key=lambda pair: -pair[1].similarity)
        looked_at = sorted(similar[:candidates], key=lambda pair: -pair[1].log_odds)
        assert_same(row[:candidates], looked_at)
        rest = row[candidates:]
        assert [match.number for match in rest] == [n for n, _ in similar[candidates:]]
        assert all(match.probability is None for match in rest)


def test_top_cuts_the_texts_of_a_picture(retriever: Retriever, root: Path) -> None:
    file, texts = root / "00.png", read(retriever, TEXTS)
    (all_of_them,) = retriever.rank([file], [texts]).answers
    (two,) = retriever.rank([file], [texts], top=2).answers
    assert all_of_them is not None
    assert two is not None
    assert len(all_of_them) == len(TEXTS)
    assert [match.number for match in two] == [match.number for match in all_of_them[:2]]


def test_many_pictures_in_one_call_share_the_texts(
    retriever: Retriever, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, texts = sorted(root.iterdir()), read(retriever, TEXTS)
    with counted(retriever, monkeypatch) as counts:
        retriever.rank(files, [texts] * len(files))
    assert (counts.pictures, counts.texts, counts.pairs) == (20, 16, 20 * 16)
    assert counts.fuse_calls == [8, 8, 4], "pictures share a call as long as it has room"


def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_answered(
    retriever: Retriever, root: Path, tmp_path: Path
) -> None:
    files = [root / "00.png", tmp_path / "none.png", root / "01.png"]
    texts = [read(retriever, TEXTS[:n]) for n in (2, 3, 4)]
    found = retriever.rank(files, texts)
    assert found.answers[1] is None
    (problem,) = found.problems
    assert problem.endswith("none.png cannot be used: missing")
    alone_too = retriever.rank([files[0], files[2]], [texts[0], texts[2]])
    assert [row for row in found.answers if row] == list(alone_too.answers)


# ---------------------------------------------------------------- models


def test_a_model_without_boxes_says_no_part(
    make_model: MakeModel, root: Path, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "m", task="retrieval", heads=("contrastive", "matching"))
    retriever = Retriever.from_folder(folder, "cpu")
    assert not retriever.has_boxes
    asked = [[retriever.read("red circle")]]
    (row,) = retriever.rank([root / "00.png"], asked, region=True).answers
    assert row is not None
    (match,) = row
    assert match.box_xyxy_px is None
    assert "box_xyxy_px" not in match.to_json()


@pytest.mark.parametrize(
    ("heads", "lacking"), [(("matching", "box"), "contrastive"), (("contrastive",), "matching")]
)
def test_a_model_without_the_needed_heads_is_refused(
    make_model: MakeModel, tmp_path: Path, heads: tuple[str, ...], lacking: str
) -> None:
    folder = make_model(tmp_path / "m", heads=heads)
    with pytest.raises(CheckpointError, match=f"no {lacking} head"):
        Retriever.from_folder(folder)


def test_a_text_of_which_nothing_is_left_is_refused(retriever: Retriever) -> None:
    with pytest.raises(UsageError, match="nothing is left"):
        retriever.read("?!")


def test_vectors_are_of_length_one_and_of_each_picture_alone(
    retriever: Retriever, index: SearchIndex, root: Path
) -> None:
    np.testing.assert_allclose(np.linalg.norm(index.vectors_NE, axis=1), 1, atol=1e-6)
    (vector,) = retriever.picture_vectors([read_picture(root / "07.png")])
    np.testing.assert_allclose(vector, index.vectors_NE[7], atol=1e-5)
