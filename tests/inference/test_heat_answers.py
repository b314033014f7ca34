"""Answers from heat maps: which box, whatever stands beside, and where each word looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.inference.conftest import MakeModel, picture
from tests.models.shapes import bench_config
from xvlm_core.errors import CheckpointError
from xvlm_core.inference import heat_answers
from xvlm_core.inference.draw_explain import explain
from xvlm_core.inference.heat_answers import Place, WordSpan
from xvlm_core.inference.heatmap import look
from xvlm_core.inference.predictor import Grounding, Predictor
from xvlm_core.metrics.heat_map import best_box, proposal_scores
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.xvlm import XVLM

PHRASES = ["red circle", "the large blue square", "green squares"]
BOXES = [(0, 0, 30, 30), (20, 10, 50, 40), (5, 25, 25, 45), (40, 0, 60, 20)]


@pytest.fixture(scope="module")
def weak(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A model without a box head."""
    folder = tmp_path_factory.mktemp("weak")
    return Predictor.from_folder(
        make_model(folder, task="weak_grounding", heads=("contrastive", "matching")), "cpu"
    )


def heat_of(predictor: Predictor, answer: Grounding) -> np.ndarray:
    ids = predictor.tokenizer.encode(answer.read_as, 6).ids
    prepared = predictor._prepare(picture(60, 45, 1), None)
    looks = look(
        predictor.model,
        torch.from_numpy(prepared.pixels_CHW)[None],
        PackedTexts.from_lists([ids]),
        torch.zeros(1, dtype=torch.int64),
        predictor.layer,
    )
    assert answer.probability == pytest.approx(looks.match_probability_B.item(), abs=1e-6)
    return looks.maps.of_texts()[0].numpy()


def test_a_model_without_a_box_head_answers_with_what_is_hot(weak: Predictor) -> None:
    assert weak.finds_without_boxes
    for answer in weak.ground(picture(60, 45, 1), PHRASES):
        assert answer.found_by == "heat map"
        fractions = np.array(best_box(heat_of(weak, answer)))
        assert answer.box_xyxy_px == pytest.approx(fractions * (60, 45, 60, 45), abs=1e-4)


def test_of_proposals_the_one_with_the_most_heat_is_taken(weak: Predictor) -> None:
    for answer in weak.ground(picture(60, 45, 1), PHRASES, proposals=BOXES):
        scores = proposal_scores(heat_of(weak, answer), BOXES, 60, 45)
        assert answer.found_by == "proposal"
        assert answer.box_xyxy_px == BOXES[int(scores.argmax())]
        assert answer.proposal_score == pytest.approx(scores.max(), rel=1e-3)


def test_proposals_overrule_the_box_head_and_only_where_there_are_any(
    predictor: Predictor,
) -> None:
    image = picture(60, 45, 1)
    nowhere = [(100, 100, 120, 120), (5, 5, 5, 40)]
    items = [(image, PHRASES)] * 4
    rows = predictor.ground_many(items, 3, proposals=[None, BOXES, nowhere, []])
    found = [{answer.found_by for answer in row} for row in rows]
    assert found == [{"box head"}, {"proposal"}, {"box head"}, {"box head"}]
    plain = predictor.ground(image, PHRASES)
    for number in (0, 2, 3):
        for one, other in zip(rows[number], plain, strict=True):
            assert one.box_xyxy_px == pytest.approx(other.box_xyxy_px, abs=1e-3)


def test_explaining_changes_no_answer(predictor: Predictor, weak: Predictor) -> None:
    for model in (predictor, weak):
        plain = model.ground(picture(60, 45, 1), PHRASES)
        explained = model.ground(picture(60, 45, 1), PHRASES, explain=True)
        for one, other in zip(plain, explained, strict=True):
            assert other.box_xyxy_px == pytest.approx(one.box_xyxy_px, abs=1e-3)
            assert other.probability == pytest.approx(one.probability, abs=1e-5)
            assert one.heat is None
            assert other.heat is not None


def test_answers_of_heat_maps_are_the_same_in_batches_and_one_by_one(weak: Predictor) -> None:
    items = [(picture(60 + 7 * i, 50 - 3 * i, i), PHRASES[: 1 + i % 3]) for i in range(5)]
    boxes = [BOXES if i % 2 else None for i in range(5)]
    together = weak.ground_many(items, batch_size=2, proposals=boxes)
    for (image, phrases), some, row in zip(items, boxes, together, strict=True):
        for phrase, answer in zip(phrases, row, strict=True):
            (alone,) = weak.ground(image, [phrase], proposals=some)
            assert alone.box_xyxy_px == answer.box_xyxy_px
            assert alone.found_by == answer.found_by


def test_a_picture_is_encoded_once_although_two_layers_are_looked_at(weak: Predictor) -> None:
    seen: list[int] = []
    handle = weak.model.vision.register_forward_hook(
        lambda _module, inputs, _output: seen.append(len(inputs[0]))
    )
    try:
        weak.ground_many([(picture(20, 20, i), PHRASES) for i in range(3)], explain=True)
    finally:
        handle.remove()
    assert seen == [3]


def test_words_have_a_map_of_their_pieces_in_a_layer_where_they_are_read(
    make_model: MakeModel, tmp_path: Path
) -> None:
    """In the last layer the matching head reads the first token alone: words have no slope."""
    one = Predictor.from_folder(make_model(tmp_path / "one", heads=("matching",)), "cpu")
    (answer,) = one.ground(picture(60, 45), ["green squares"], explain=True)
    assert answer.heat is not None
    assert (answer.heat.layer, answer.heat.word_layer, answer.heat.words) == (1, None, ())


def test_the_map_of_a_word_is_the_mean_of_its_pieces() -> None:
    torch.manual_seed(2)
    model = XVLM(bench_config(init="xavier")).eval()
    pictures, picture_of_text = torch.randn(1, 3, 128, 128), torch.zeros(2, dtype=torch.int64)
    texts = PackedTexts.from_lists([[2, 7, 8, 9], [2, 5]])
    words = ((WordSpan("a", 1, 2), WordSpan("b", 2, 4)), (WordSpan("c", 1, 2),))
    places = [Place(40, 30, None, own) for own in words]
    found = heat_answers.answer(model, pictures, texts, picture_of_text, places, 3, explain=True)
    tokens = look(model, pictures, texts, picture_of_text, 2).maps.of_tokens()
    whole = look(model, pictures, texts, picture_of_text, 3).maps.of_texts()
    for text, one in enumerate(found):
        assert one.heat is not None
        assert (one.heat.layer, one.heat.word_layer) == (3, 2)
        np.testing.assert_allclose(one.heat.map_nn, whole[text].numpy(), rtol=1e-4, atol=1e-7)
        for span, word in zip(words[text], one.heat.words, strict=True):
            expected = tokens[text][span.start : span.stop].mean(0).numpy()
            np.testing.assert_allclose(word.map_nn, expected, rtol=1e-3, atol=1e-6)
            assert word.word == span.word
            assert word.map_nn.max() > 0


def test_the_words_of_a_phrase_are_found_among_its_pieces(weak: Predictor) -> None:
    question = weak._question(0, "green squares circles of the left")
    assert question.words == (
        WordSpan("green", 1, 2),
        WordSpan("squares", 2, 4),
        WordSpan("circles", 4, 6),
    )


def test_an_expression_of_no_known_word_is_answered(weak: Predictor) -> None:
    (answer,) = weak.ground(picture(60, 45), ["zebra yak"], explain=True)
    assert answer.unknown_words == ("zebra", "yak")
    assert answer.found_by in ("heat map", "no heat")
    assert answer.box_xyxy_px[2] > answer.box_xyxy_px[0]


@pytest.mark.parametrize("size", [(2000, 3), (2, 900)])
def test_pictures_of_extreme_shape(size: tuple[int, int], weak: Predictor) -> None:
    image = picture(*size)
    width, height = size
    answers = weak.ground(image, PHRASES, explain=True)
    some = [(0, 0, width, height), (0, 0, width / 2, height / 2), (0.2, 0.2, 0.8, 0.8)]
    answers += weak.ground(image, PHRASES, proposals=some, explain=True)
    for answer in answers:
        x1, y1, x2, y2 = answer.box_xyxy_px
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
    assert explain(image, answers).width >= 96


def test_a_map_without_heat_is_the_whole_picture_and_says_so(
    weak: Predictor,
) -> None:
    head = dict(weak.model.itm_head.named_children())["3"]
    assert isinstance(head, torch.nn.Linear)
    before = head.weight.detach().clone()
    try:
        with torch.no_grad():
            head.weight.zero_()  # no slope anywhere
        (hot,) = weak.ground(picture(60, 45), ["red circle"], explain=True)
        (chosen,) = weak.ground(picture(60, 45), ["red circle"], proposals=BOXES)
    finally:
        with torch.no_grad():
            head.weight.copy_(before)
    assert (hot.found_by, hot.box_xyxy_px) == ("no heat", (0, 0, 60, 45))
    assert (chosen.found_by, chosen.proposal_score, chosen.box_xyxy_px) == ("proposal", 0, BOXES[0])
    assert explain(picture(60, 45), [hot]).size[1] > 45


def test_a_model_without_a_matching_head_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no matching head"):
        Predictor.from_folder(make_model(tmp_path / "m", heads=("contrastive", "box")))
