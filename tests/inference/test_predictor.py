from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.inference.conftest import MakeModel, picture
from xvlm_core.data import augment
from xvlm_core.errors import CheckpointError, DataError, UsageError
from xvlm_core.inference import predictor as predictor_module
from xvlm_core.inference.predictor import Grounding, Predictor
from xvlm_core.models.packing import PackedTexts

PHRASES = ["red circle", "the large blue square", "green squares"]


def assert_same(a: Grounding, b: Grounding, side: int) -> None:
    assert (a.phrase, a.read_as, a.unknown_words) == (b.phrase, b.read_as, b.unknown_words)
    assert a.probability == pytest.approx(b.probability, abs=1e-5)
    assert a.box_unclipped_xyxy_px == pytest.approx(b.box_unclipped_xyxy_px, abs=1e-5 * side)
    assert a.box_xyxy_px == pytest.approx(b.box_xyxy_px, abs=1e-5 * side)


# ---------------------------------------------------------------- what the answer is


def test_the_answer_is_the_models_box_in_pixels_of_the_original_picture(
    predictor: Predictor,
) -> None:
    image = picture(90, 40)
    (answer,) = predictor.ground(image, ["Red circle!"])
    ids = predictor.tokenizer.encode("red circle", 6).ids
    pixels = torch.from_numpy(augment.normalise(augment.test_picture(image, 64)))[None]
    with torch.no_grad():
        expected = predictor.model.ground(
            pixels, PackedTexts.from_lists([ids]), torch.zeros(1, dtype=torch.int64)
        )
    cx, cy, w, h = expected.boxes_cxcywh_B4[0].tolist()
    assert answer.box_unclipped_xyxy_px == pytest.approx(
        ((cx - w / 2) * 90, (cy - h / 2) * 40, (cx + w / 2) * 90, (cy + h / 2) * 40), abs=1e-3
    )
    assert answer.probability == pytest.approx(expected.match_probability_B.item(), abs=1e-6)
    assert (answer.phrase, answer.read_as) == ("Red circle!", "red circle")


def test_answers_depend_on_the_picture_and_on_the_phrase(predictor: Predictor) -> None:
    answers = predictor.ground_many(
        [(picture(50, 50, seed), ["red circle", "blue square"]) for seed in (1, 2)]
    )
    boxes = {answer.box_unclipped_xyxy_px for row in answers for answer in row}
    probabilities = {answer.probability for row in answers for answer in row}
    assert len(boxes) == len(probabilities) == 4


def test_boxes_for_users_are_clipped_and_those_for_metrics_are_not(predictor: Predictor) -> None:
    bias = predictor.model.bbox_head[3].bias
    before = bias.detach().clone()
    try:
        with torch.no_grad():
            bias.copy_(torch.tensor([40.0, -40.0, 40.0, 0.0]))  # at the corner, as wide as all
        (answer,) = predictor.ground(picture(30, 20), ["red circle"])
    finally:
        with torch.no_grad():
            bias.copy_(before)
    assert answer.box_unclipped_xyxy_px[0] == pytest.approx(15, abs=0.1)
    assert answer.box_unclipped_xyxy_px[1] < 0
    assert answer.box_unclipped_xyxy_px[2] == pytest.approx(45, abs=0.1)
    x1, y1, x2, y2 = answer.box_xyxy_px
    assert (y1, x2) == (0, 30)
    assert 0 <= x1 < x2
    assert y1 < y2 == pytest.approx(answer.box_unclipped_xyxy_px[3])


def test_the_answer_as_json_can_be_written_and_has_every_field(predictor: Predictor) -> None:
    (answer,) = predictor.ground(picture(30, 20), ["red dog"])
    content = json.loads(json.dumps(answer.to_json()))
    assert content["phrase"] == content["read_as"] == "red dog"
    assert content["box_xyxy_px"] == list(answer.box_xyxy_px)
    assert content["box_unclipped_xyxy_px"] == list(answer.box_unclipped_xyxy_px)
    assert content["probability"] == answer.probability
    assert content["unknown_words"] == ["dog"]


# ---------------------------------------------------------------- batches


def test_answers_are_the_same_in_batches_and_one_by_one(predictor: Predictor) -> None:
    items = [
        (picture(60 + 7 * i, 50 - 3 * i, i), PHRASES[: 1 + i % 3] + PHRASES[:1]) for i in range(5)
    ]
    together = predictor.ground_many(items, batch_size=3)
    assert [len(row) for row in together] == [2, 3, 4, 2, 3]
    for (image, phrases), row in zip(items, together, strict=True):
        for phrase, answer in zip(phrases, row, strict=True):
            (alone,) = predictor.ground(image, [phrase])
            assert_same(answer, alone, side=100)


def test_many_phrases_are_split_into_calls_without_changing_answers(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [(picture(40, 40, 1), PHRASES), (picture(40, 60, 2), PHRASES)]
    whole = predictor.ground_many(items)
    monkeypatch.setattr(predictor_module, "MAX_PHRASES_AT_ONCE", 2)
    for row, row_split in zip(whole, predictor.ground_many(items), strict=True):
        for answer, answer_split in zip(row, row_split, strict=True):
            assert_same(answer, answer_split, side=60)


def test_each_picture_is_encoded_once_for_all_its_phrases(predictor: Predictor) -> None:
    seen: list[int] = []
    handle = predictor.model.vision.register_forward_hook(
        lambda _module, inputs, _output: seen.append(len(inputs[0]))
    )
    try:
        predictor.ground_many([(picture(20, 20, i), PHRASES) for i in range(5)], batch_size=2)
        predictor.ground_many([(picture(20, 20), []), (picture(20, 20), PHRASES)])
    finally:
        handle.remove()
    assert seen == [2, 2, 1, 1]  # and one without phrases not at all


def test_pictures_are_read_only_when_their_batch_comes(predictor: Predictor) -> None:
    taken: list[int] = []
    answered_before_third: list[int] = []
    original = predictor._ground_batch

    def items():  # type: ignore[no-untyped-def]
        for number in range(3):
            taken.append(number)
            yield picture(10, 10, number), ["red circle"]

    def spy(*batch):  # type: ignore[no-untyped-def]
        answered_before_third.append(len(taken))
        return original(*batch)

    predictor._ground_batch = spy  # type: ignore[method-assign]
    try:
        assert len(predictor.ground_many(items(), batch_size=1)) == 3
    finally:
        del predictor._ground_batch
    assert answered_before_third == [1, 2, 3]


def test_a_picture_without_phrases_has_no_answers(predictor: Predictor) -> None:
    rows = predictor.ground_many([(picture(9, 9), []), (picture(9, 9), ["red circle"])])
    assert [len(row) for row in rows] == [0, 1]
    assert predictor.ground(picture(9, 9), []) == []


# ---------------------------------------------------------------- pictures


def test_a_file_and_the_same_picture_in_memory_give_the_same_answer(
    predictor: Predictor, tmp_path: Path
) -> None:
    image = picture(33, 47)
    image.save(tmp_path / "a.png")
    from_memory = predictor.ground(image, PHRASES)
    assert predictor.ground(tmp_path / "a.png", PHRASES) == from_memory
    assert predictor.ground(str(tmp_path / "a.png"), PHRASES) == from_memory


@pytest.mark.parametrize("in_memory", [True, False])
def test_boxes_are_those_of_the_picture_after_exif_orientation(
    predictor: Predictor, tmp_path: Path, in_memory: bool
) -> None:
    upright = picture(30, 60)
    turned = upright.transpose(Image.Transpose.ROTATE_90)  # orientation 6 turns it back
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    source = Image.open(tmp_path / "turned.png") if in_memory else tmp_path / "turned.png"
    assert predictor.ground(source, PHRASES) == predictor.ground(upright, PHRASES)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "LA", "1", "I;16", "CMYK"])
def test_pictures_in_memory_of_any_mode_are_read_as_files_are(
    predictor: Predictor, tmp_path: Path, mode: str
) -> None:
    if mode == "I;16":
        values = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
        image = Image.fromarray(values)
    elif mode in ("RGBA", "LA"):
        image = picture(30, 20).convert(mode)
        image.putalpha(Image.linear_gradient("L").resize((30, 20)))
    else:
        image = picture(30, 20).convert(mode)
    name = "a.tiff" if mode == "CMYK" else "a.png"
    image.save(tmp_path / name)
    (memory,) = predictor.ground(image, ["red circle"])
    (file,) = predictor.ground(tmp_path / name, ["red circle"])
    assert_same(memory, file, side=30)


def test_a_picture_that_cannot_be_read_is_named(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"broken\.jpg.*not an image") as caught:
        predictor.ground(tmp_path / "broken.jpg", ["red circle"])
    assert caught.value.try_
    with pytest.raises(DataError, match=r"none\.png.*missing"):
        predictor.ground(tmp_path / "none.png", ["red circle"])
    with pytest.raises(DataError, match="unsupported pixel type"):
        predictor.ground(Image.new("F", (4, 4)), ["red circle"])


# ---------------------------------------------------------------- phrases


@pytest.mark.parametrize("phrase", ["", "   ", "?!", "\u200b\n"])
def test_a_phrase_of_which_nothing_is_left_is_refused(predictor: Predictor, phrase: str) -> None:
    with pytest.raises(UsageError, match="nothing is left"):
        predictor.ground(picture(9, 9), ["red circle", phrase])


def test_a_single_text_instead_of_a_list_is_refused(predictor: Predictor) -> None:
    with pytest.raises(UsageError, match="must be a list"):
        predictor.ground(picture(9, 9), "red circle")


def test_the_answer_says_what_was_read_of_a_long_phrase(predictor: Predictor) -> None:
    long, short = predictor.ground(
        picture(9, 9), ["the red circle left of the blue square", "the red circle left"]
    )
    assert long.read_as == "the red circle left"  # four words are kept
    assert (long.cut, short.cut) == (True, False)
    as_long = Grounding(**{**vars(short), "phrase": long.phrase, "cut": True})
    assert_same(long, as_long, side=9)
    (cut,) = predictor.ground(picture(9, 9), ["redsss circle left of"])  # six tokens with CLS
    assert cut.read_as == "redsss circle"
    assert cut.cut


def test_the_answer_names_words_that_the_model_does_not_know(predictor: Predictor) -> None:
    known, unknown = predictor.ground(picture(9, 9), ["red circles", "Wug of 象 wug"])
    assert known.unknown_words == ()
    assert unknown.unknown_words == ("wug", "象")


def test_hostile_phrases_are_answered(predictor: Predictor) -> None:
    phrases = ["red \ud800 circle", "rouge\u202e cercle", "🟥 🟦", "x" * 5000]
    assert len(predictor.ground(picture(9, 9), phrases)) == 4


# ---------------------------------------------------------------- loading


def test_a_model_without_the_needed_heads_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", heads=("box",))
    with pytest.raises(CheckpointError, match="no matching head") as caught:
        Predictor.from_folder(folder)
    assert caught.value.exit_code == 5


def test_a_device_that_is_not_there_is_refused(model_folder: Path) -> None:
    with pytest.raises(UsageError, match="no such device"):
        Predictor.from_folder(model_folder, device="abacus")
    with pytest.raises(UsageError, match="is not there"):
        Predictor.from_folder(model_folder, device="cuda:63")


def test_batch_size_below_one_is_refused(predictor: Predictor) -> None:
    with pytest.raises(UsageError, match="batch size 0"):
        predictor.ground_many([(picture(9, 9), ["red"])], batch_size=0)
