"""Evaluation of retrieval: every pair near by is scored once, the same on any number of ranks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.painted import painted_record, painted_store
from tests.tasks.recipes import BOXES, COLOURS, MODEL, SHAPES
from tests.train.ranks import on_ranks
from xvlm_core.config.schema import ModelSection, ScoringSection
from xvlm_core.data.records import Record
from xvlm_core.data.store import Store
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.errors import CheckpointError
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.text import OnePicture
from xvlm_core.models.xvlm import XVLM
from xvlm_core.tasks import retrieval_eval
from xvlm_core.tasks.base import Prediction
from xvlm_core.tasks.retrieval_eval import RetrievalEvaluation, score
from xvlm_core.tasks.retrieval_passes import PairsBatch, match_scores
from xvlm_core.tasks.retrieval_ranking import Candidates, Found
from xvlm_core.tasks.saved_predictions import join, read_answers
from xvlm_core.train.evaluation import Evaluated, evaluate
from xvlm_core.train.ranks import Ranks
from xvlm_core.weights.folder import ModelInfo
from xvlm_core.world.grammar import wordpiece_vocabulary

CPU = torch.device("cpu")
TOKENIZER = Tokenizer.from_vocab(wordpiece_vocabulary())
PICTURES = 7


def records(root: Path, n: int = PICTURES) -> list[Record]:
    """Pictures with one to three captions of different lengths."""
    made = []
    for i in range(n):
        colour, shape, other = COLOURS[i % 5], SHAPES[i % 4], SHAPES[(i + 1) % 4]
        captions = (f"a {colour} {shape}", f"a {colour} {shape} and a {other}", f"one {shape}")
        x = 10.0 * i
        regions = [("a", (x, 0.0, x + 20, 40.0)), ("b", BOXES[i % 2])]
        more: dict[str, Any] = {"size": (120, 90), "split": "test"}
        made.append(painted_record(root, f"r{i}", regions, captions=captions[: 1 + i % 3], **more))
    return made


def write(root: Path, made: Sequence[Record] | None = None) -> Store:
    made = records(root) if made is None else made
    return painted_store(root / "store", root, made)


def evaluation_of(store: Store, **more: Any) -> RetrievalEvaluation:
    sizes = {"image_size": 64, "max_words": 12, "max_tokens": 12}
    settings = {"candidates": 3, "batch_records": 2, **sizes, **more}
    return RetrievalEvaluation([store], "test", TOKENIZER, **settings)  # type: ignore[arg-type]


def model_of() -> XVLM:
    """Untrained; scores and features of different items are told apart."""
    torch.manual_seed(3)
    shape = ModelSection(**MODEL).shape(vocab_size=TOKENIZER.vocab_size)
    model = XVLM(shape)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("weight") and weight.dim() == 2:
                weight.mul_(2)
    return model.eval()


def answers(model: XVLM, evaluation: RetrievalEvaluation) -> Evaluated:
    found = evaluate(evaluation, model, CPU)
    assert found is not None
    return found


# ---------------------------------------------------------------------- against a plain loop


@dataclasses.dataclass(frozen=True)
class Plain:
    """What a loop over single pairs finds."""

    pictures: list[str]
    texts: list[str]
    similarity: np.ndarray
    score: np.ndarray


@torch.no_grad()
def by_loop(model: XVLM, evaluation: RetrievalEvaluation) -> Plain:
    """All pairs, one at a time, by the plain cross encoder."""
    batches = [batch for batch in evaluation.validation() if batch.picture_ids]
    pictures = [name for batch in batches for name in batch.picture_ids]
    items = [item for batch in batches for item in batch.items]
    patches = [
        model.encode_pictures(picture[None]) for batch in batches for picture in batch.pictures_ICHW
    ]
    states = [model.encode_texts(PackedTexts.from_lists([item.tokens])) for item in items]
    one = torch.tensor([0])
    near = torch.cat([model.picture_features(p, model.whole(1)) for p in patches])
    near = near @ torch.cat([model.text_features(s.first()) for s in states]).T
    scores = [
        [model.match_logits(model.fuse(s, p, model.whole(1), one).first())[0, 1] for s in states]
        for p in patches
    ]
    return Plain(pictures, [i.id for i in items], near.numpy(), np.array(scores, dtype=np.float32))


def ranked_by_loop(near: np.ndarray, scores: np.ndarray, k: int) -> list[tuple[int, float | None]]:
    """By score among the k nearest, then the others by similarity; ties by similarity, number."""
    order = sorted(range(len(near)), key=lambda n: (-near[n], n))
    first = sorted(order[:k], key=lambda n: (-scores[n], -near[n], n))
    return [(n, float(scores[n])) for n in first] + [(n, None) for n in order[k:]]


@pytest.mark.parametrize("k", [1, 3, 12, 256])
def test_rankings_are_those_of_a_loop_over_all_pairs(k: int, tmp_path: Path) -> None:
    model, evaluation = model_of(), evaluation_of(write(tmp_path), candidates=k)
    found = answers(model, evaluation)
    plain = by_loop(model, evaluation)
    assert (len(plain.pictures), len(plain.texts)) == (PICTURES, 13)
    for table in (plain.score, plain.similarity):
        gap = min(np.diff(np.sort(t, axis=1)).min() for t in (table, table.T))
        assert gap > 1e-5, "no two are as close as the rounding of float32"
    asked = {p["id"]: p for p in found.predictions}
    assert list(asked) == plain.pictures + plain.texts
    for queries, names, near, scores in (
        (plain.pictures, plain.texts, plain.similarity, plain.score),
        (plain.texts, plain.pictures, plain.similarity.T, plain.score.T),
    ):
        for q, query in enumerate(queries):
            expected = ranked_by_loop(near[q], scores[q], k)[:10]
            made = asked[query]
            assert made["ranking"] == [names[n] for n, _ in expected]
            assert [s is None for s in made["scores"]] == [s is None for _, s in expected]
            close = [s for s in made["scores"] if s is not None]
            assert close == pytest.approx([s for _, s in expected if s is not None], abs=1e-4)
            by_similarity = ranked_by_loop(near[q], near[q], 0)[:10]
            assert made["by_similarity"] == [names[n] for n, _ in by_similarity]
            assert (made["candidates"], made["among"]) == (min(k, len(names)), len(names))
    assert answers(model, evaluation).predictions == found.predictions, "it can be repeated"


@pytest.mark.parametrize("k", [1, 3, 256])
def test_each_pair_is_scored_once_and_each_item_encoded_once(
    k: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, evaluation = model_of(), evaluation_of(write(tmp_path), candidates=k)
    plain = by_loop(model, evaluation)
    pairs: list[tuple[str, int]] = []
    done = {"pictures": 0, "texts": 0}
    score_pairs, encode_pictures, encode_texts = (
        RetrievalEvaluation._score,
        XVLM.encode_pictures,
        XVLM.encode_texts,
    )

    def scored(self: Any, model: XVLM, batch: PairsBatch) -> Prediction:
        pairs.extend((batch.picture, int(text)) for text in batch.texts)
        return score_pairs(self, model, batch)

    def pictures(self: XVLM, pictures_ICHW: torch.Tensor) -> torch.Tensor:
        done["pictures"] += len(pictures_ICHW)
        return encode_pictures(self, pictures_ICHW)

    def texts(self: XVLM, texts: PackedTexts) -> Any:
        done["texts"] += texts.packing.n_texts
        return encode_texts(self, texts)

    monkeypatch.setattr(RetrievalEvaluation, "_score", scored)
    monkeypatch.setattr(XVLM, "encode_pictures", pictures)
    monkeypatch.setattr(XVLM, "encode_texts", texts)
    answers(model, evaluation)
    assert done == {"pictures": PICTURES, "texts": 13}
    wanted = set()
    for p, name in enumerate(plain.pictures):
        wanted |= {(name, t) for t, _ in ranked_by_loop(plain.similarity[p], plain.score[p], k)[:k]}
    for t in range(13):
        row = ranked_by_loop(plain.similarity[:, t], plain.score[:, t], k)[:k]
        wanted |= {(plain.pictures[p], t) for p, _ in row}
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == wanted


def test_keys_and_values_of_a_picture_are_projected_once_for_all_its_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval_eval, "TEXTS_A_CALL", 4)
    model, evaluation = model_of(), evaluation_of(write(tmp_path), candidates=256)
    plain = by_loop(model, evaluation)
    seen = []
    (layer,) = (one for one in model.text.layers if one.cross_attention is not None)
    layer.cross_attention.key.register_forward_hook(lambda *_: seen.append(1))
    found = answers(model, evaluation)
    assert len(seen) == PICTURES
    scores = {p["id"]: dict(zip(p["ranking"], p["scores"], strict=True)) for p in found.predictions}
    for p, picture in enumerate(plain.pictures):
        for name, value in scores[picture].items():
            assert value == pytest.approx(plain.score[p, plain.texts.index(name)], abs=1e-4)


@torch.no_grad()
def test_texts_of_any_length_look_at_one_picture_as_each_alone() -> None:
    model = model_of()
    picture = model.encode_pictures(torch.randn(1, 3, 64, 64))
    texts = PackedTexts.from_lists([[2, *range(5, 5 + n)] for n in (3, 1, 7, 3, 5)])
    states = model.encode_texts(texts)
    looked = OnePicture(picture[0])
    at_once = match_scores(model, states, looked)
    rows = torch.zeros(5, dtype=torch.int64)
    plain = model.match_logits(model.fuse(states, picture, model.whole(1), rows).first())[:, 1]
    assert torch.allclose(at_once, plain, atol=1e-5)
    assert torch.equal(match_scores(model, states, looked), at_once)
    assert at_once.std() > 1e-3


# ---------------------------------------------------------------------- ties


def found_of(pictures: Any, texts: Any) -> Found:
    """A collection of given features; every text belongs to the first picture."""
    n, m = len(pictures), len(texts)
    return Found(
        tuple(f"picture:{i}" for i in range(n)),
        tuple(f"text:{i}" for i in range(m)),
        np.zeros(m, dtype=np.int64),
        ("",) * m,
        ((2,),) * m,
        np.zeros(m, dtype=np.int64),
        np.array(pictures, dtype=np.float32),
        np.array(texts, dtype=np.float32),
    )


@pytest.mark.parametrize("chunk", [1, 2, 256])
def test_ties_go_by_similarity_then_by_number(chunk: int) -> None:
    pairs = Candidates(found_of([[1, 0], [1, 0]], [[1, 0], [3, 0], [1, 0], [2, 0]]), 3, chunk=chunk)
    assert pairs.texts_of(0).tolist() == [0, 1, 2, 3], "the last one by way of its own nearest"
    scores = np.array([5, 5, 7, 5] * 2, dtype=np.float32)
    ranking = pairs.picture_ranking(0, scores)
    # 1, 3 and 0 are the nearest three (0 before 2, which is as near); their scores are equal
    assert ranking.by_similarity == [1, 3, 0, 2]
    assert ranking.ranked == [1, 3, 0, 2]
    assert ranking.scores == [5, 5, 5, None], "what is not among a query's own is not scored"
    scores[0] = 6
    assert pairs.picture_ranking(0, scores).ranked == [0, 1, 3, 2]
    for text in range(4):
        equal = np.zeros(8, dtype=np.float32)
        assert pairs.text_ranking(text, equal).ranked == [0, 1]


def test_a_model_that_cannot_tell_anything_apart_is_not_flattered(tmp_path: Path) -> None:
    model, evaluation = model_of(), evaluation_of(write(tmp_path), candidates=256)
    with torch.no_grad():
        for layer in (model.vision_proj, model.text_proj, model.itm_head[-1]):
            layer.weight.zero_()
    scores = answers(model, evaluation).scores
    # all are equal: each query gets the first, which is right for the first picture alone
    assert scores["text R@1"].value == 1 / PICTURES
    assert scores["image R@1"].value == 1 / 13


# ---------------------------------------------------------------------- ranks


def answers_of_a_rank(ranks: Ranks, root: Path, k: int) -> Evaluated | None:
    store = Store.open(root / "store")
    return evaluate(evaluation_of(store, candidates=k), model_of(), CPU, ranks=ranks)


def test_the_figures_are_the_same_to_the_last_digit_on_any_number_of_ranks(tmp_path: Path) -> None:
    store = write(tmp_path)
    whole = answers(model_of(), evaluation_of(store, candidates=3))
    for world_size in (2, 3):
        for found in on_ranks(world_size, answers_of_a_rank, tmp_path, 3):
            assert isinstance(found, Evaluated), found
            assert found.scores == whole.scores
            assert found.predictions == whole.predictions


def test_answers_of_few_candidates_can_be_saved_and_scored(tmp_path: Path) -> None:
    evaluation = evaluation_of(write(tmp_path), candidates=1)
    whole = answers(model_of(), evaluation)
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(json.dumps(p) for p in whole.predictions), encoding="utf-8")
    assert "null" in file.read_text(encoding="utf-8"), "ranked by similarity alone"
    read = read_answers(file, RetrievalEvaluation.NO_ANSWER)
    joined = join(file, read, [evaluation.references()], RetrievalEvaluation.NO_ANSWER)
    assert evaluation.score(joined.predictions[0]) == whole.scores


@pytest.mark.parametrize("world_size", [2, 3, 9])
def test_the_ranks_share_the_batches_out(world_size: int, tmp_path: Path) -> None:
    evaluation = evaluation_of(write(tmp_path))
    batches = [b for r in range(world_size) for b in evaluation.validation(r, world_size)]
    whole = list(evaluation.validation())
    assert [b.picture_ids for b in batches] == [b.picture_ids for b in whole]
    assert [len(b.picture_ids) for b in whole] == [2, 2, 2, 1]


# ---------------------------------------------------------------------- what is left out, figures


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    made = records(tmp_path)
    made[1] = dataclasses.replace(made[1], captions=())
    made[2] = dataclasses.replace(made[2], captions=("?!", "a red circle", "."))
    made[3] = dataclasses.replace(made[3], captions=("...",))
    (tmp_path / "r5.png").unlink()
    evaluation = evaluation_of(write(tmp_path, made))
    found = answers(model_of(), evaluation)
    assert found.dropped == {
        "picture: no caption": 2,
        "text: empty text": 3,
        "picture: missing": 1,
        "text: its picture is left out": 3,
    }
    assert evaluation.dropped == found.dropped
    assert found.examples == {
        "picture: no caption": ["picture:r1", "picture:r3"],
        "text: empty text": ["text:r2#0", "text:r2#2", "text:r3#0"],
        "picture: missing": ["picture:r5"],
        "text: its picture is left out": ["text:r5#0"],
    }
    ids = [p["id"] for p in found.predictions]
    assert [i for i in ids if i.startswith("picture")] == [f"picture:r{i}" for i in (0, 2, 4, 6)]
    assert "text:r2#1" in ids
    assert not {i for i in ids if "r5" in i or "r1" in i or "r3" in i}
    told = {p["id"] for p in evaluation.references()}
    assert told - set(ids) == {"picture:r5", *(f"text:r5#{n}" for n in range(3))}
    assert set(ids) <= told


def test_where_nothing_can_be_asked_there_is_no_score(tmp_path: Path) -> None:
    made = [dataclasses.replace(one, captions=()) for one in records(tmp_path, 3)]
    found = answers(model_of(), evaluation_of(write(tmp_path, made)))
    assert (found.scores, found.predictions, found.dropped) == ({}, [], {"picture: no caption": 3})


def held(evaluation: RetrievalEvaluation) -> int:
    """Pictures whose patches are in memory, and batches of texts."""
    return len(evaluation._patches) + len(evaluation._encoded)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, None])
@pytest.mark.parametrize("batch", [3, 6])
def test_an_evaluation_that_is_given_up_holds_nothing(
    error: type[BaseException] | None, batch: int, tmp_path: Path
) -> None:
    """In either pass, by an error, Ctrl-C, or because it is asked to stop."""
    evaluation = evaluation_of(write(tmp_path))
    seen: list[int] = []

    def stop() -> bool:
        seen.append(held(evaluation))
        if len(seen) == batch and error is not None:
            raise error
        return len(seen) == batch

    if error is None:
        assert evaluate(evaluation, model_of(), CPU, stop=stop) is None
    else:
        with pytest.raises(error):
            evaluate(evaluation, model_of(), CPU, stop=stop)
    assert len(seen) == batch
    assert seen[-1] > 0
    assert held(evaluation) == 0
    assert evaluation._found is None
    assert answers(model_of(), evaluation).predictions, "it can be made again"


def test_saved_answers_are_scored_with_the_references_alone(tmp_path: Path) -> None:
    evaluation = evaluation_of(write(tmp_path))
    found = answers(model_of(), evaluation)
    saved = json.loads(json.dumps(found.predictions, allow_nan=False))
    assert saved == found.predictions
    references = {p["id"]: p for p in evaluation.references()}
    assert set(references) == {p["id"] for p in saved}
    answer_fields = set(RetrievalEvaluation.NO_ANSWER)
    for prediction in saved:
        right = {name: value for name, value in prediction.items() if name not in answer_fields}
        assert right == references[prediction["id"]]
    bare = [{**{f: p[f] for f in answer_fields}, **references[p["id"]]} for p in saved]
    assert evaluation.score(bare) == found.scores
    missing = [{**evaluation.NO_ANSWER, **one} for one in references.values()]
    assert {s.value for s in evaluation.score(missing).values()} == {0.0}


def test_figures_of_hand_made_rankings() -> None:
    def query(name: str, text: str | None, right: list[str], place: int) -> Prediction:
        ranking = [f"wrong {n}" for n in range(10)]
        if place < 10:
            ranking[place] = right[-1]
        return {
            "id": name,
            "text": text,
            "right": right,
            "ranking": ranking,
            "by_similarity": ["wrong"],
            "candidates": 9,
            "among": 1234,
        }

    pictures = [
        query(f"p{n}", None, ["x", f"t{n}"], place) for n, place in enumerate((0, 4, 9, 99))
    ]
    texts = [query(f"t{n}", "a", [f"p{n}"], place) for n, place in enumerate((0, 0, 5, 10, 1))]
    scores = score(pictures + texts, "test")
    assert [scores[f"text R@{k}"].value for k in (1, 5, 10)] == [0.25, 0.5, 0.75]
    assert [scores[f"image R@{k}"].value for k in (1, 5, 10)] == [0.4, 0.6, 0.8]
    assert scores["r_mean"].value == pytest.approx((1.5 + 1.8) / 6)
    assert scores["r_mean by similarity"].value == 0
    assert (scores["text R@1"].n, scores["image R@1"].n, scores["r_mean"].n) == (4, 5, 9)
    assert "the 9 nearest of 1,234" in scores["text R@1"].convention
    with pytest.raises(AssertionError, match="twice"):
        score([*texts, texts[0]], "test")


def test_any_model_with_both_heads_is_evaluated(tmp_path: Path) -> None:
    """Zero-shot: a pre-trained model, with its own sizes; others are refused."""
    store, model = write(tmp_path), model_of()
    info = ModelInfo(
        task="pretrain", about="", trained_on="", max_words=9, max_tokens=8, config=model.config
    )
    assert set(model.config.heads) > {"contrastive", "matching"}
    scoring = ScoringSection(candidates=4)
    args = ([store], "test", TOKENIZER)
    evaluation = RetrievalEvaluation.of_model(*args, info, scoring=scoring, limit=5)
    assert (evaluation.image_size, evaluation.max_tokens, evaluation.candidates) == (64, 8, 4)
    found = answers(model, evaluation)
    assert found.scores["text R@1"].n == 5
    bare = model.config.model_copy(update={"heads": ("matching", "box")})
    with pytest.raises(CheckpointError, match="no contrastive head"):
        RetrievalEvaluation.of_model(*args, info.model_copy(update={"config": bare}))


def test_ids_are_unique_where_stores_have_the_same_records(tmp_path: Path) -> None:
    store = write(tmp_path)
    twin = painted_store(tmp_path / "twin", tmp_path, [store[i] for i in range(PICTURES)])
    sizes = {"image_size": 64, "max_words": 12, "max_tokens": 12, "candidates": 2}
    both = RetrievalEvaluation([store, twin, store], "test", TOKENIZER, **sizes)  # type: ignore[arg-type]
    ids = [p["id"] for p in answers(model_of(), both).predictions]
    assert len(set(ids)) == len(ids) == 2 * (PICTURES + 13)
