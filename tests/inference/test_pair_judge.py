from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.inference.conftest import MakeModel, picture
from tests.tasks.pairs import write_pair_model
from xvlm_core.data import augment
from xvlm_core.drawing import LEGIBLE_SIDE_PX
from xvlm_core.errors import CheckpointError, DataError, UsageError
from xvlm_core.inference import pair_judge as module
from xvlm_core.inference.checkpoints import find_checkpoint
from xvlm_core.inference.draw_pair import MOST_STATEMENTS, side_by_side
from xvlm_core.inference.pair_judge import Judgement, PairJudge
from xvlm_core.models.packing import PackedTexts

STATEMENTS = ["both pictures contain a red circle", "there are two blue squares in total"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair_model(tmp_path_factory.mktemp("models") / "pairs")


@pytest.fixture(scope="module")
def judge(folder: Path) -> PairJudge:
    return PairJudge.from_folder(folder, "cpu")


def test_the_answer_is_the_models_probability_of_true(judge: PairJudge) -> None:
    left, right = picture(70, 50, 1), picture(40, 90, 2)
    answers = judge.judge(left, right, STATEMENTS)
    ids = [judge.tokenizer.encode(text, 12).ids for text in STATEMENTS]
    pixels = [augment.normalise(augment.test_picture(image, 64)) for image in (left, right)]
    first = torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        states = judge.model.read(
            torch.from_numpy(np.stack(pixels)), PackedTexts.from_lists(ids), first, first + 1
        )
        expected = judge.model.statement_logits(states.first()).softmax(-1)[:, 1]
    assert [a.probability for a in answers] == pytest.approx(expected.tolist(), abs=1e-6)
    assert [a.statement for a in answers] == STATEMENTS
    assert [a.is_true for a in answers] == [p >= 0.5 for p in expected.tolist()]


def test_answers_depend_on_both_pictures_their_order_and_the_statement(judge: PairJudge) -> None:
    a, b, c = (picture(60, 60, seed) for seed in (1, 2, 3))
    rows = judge.judge_many([(a, b, STATEMENTS), (b, a, STATEMENTS), (a, c, STATEMENTS)])
    found = {round(answer.probability, 7) for row in rows for answer in row}
    assert len(found) == 6


@pytest.mark.parametrize(("batch", "at_once"), [(1, 256), (2, 3), (50, 256), (50, 1)])
def test_answers_do_not_depend_on_batches(
    judge: PairJudge, batch: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [picture(50, 40, seed) for seed in range(4)]
    asked = [
        (pictures[i % 4], pictures[(i * 3 + 1) % 4], STATEMENTS[: 1 + i % 2]) for i in range(7)
    ]
    alone = [judge.judge(*question) for question in asked]
    monkeypatch.setattr(module, "MAX_STATEMENTS_AT_ONCE", at_once)
    together = judge.judge_many(asked, batch_size=batch)
    assert [len(row) for row in together] == [len(row) for row in alone]
    for one, other in zip(alone, together, strict=True):
        assert [a.statement for a in one] == [a.statement for a in other]
        assert [a.probability for a in one] == pytest.approx(
            [a.probability for a in other], abs=1e-5
        )


def test_a_picture_is_encoded_once_for_all_pairs_of_a_batch(
    judge: PairJudge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    encoded: list[int] = []
    encode = judge.model.encode_pictures

    def counted(pictures: torch.Tensor) -> torch.Tensor:
        encoded.append(len(pictures))
        return encode(pictures)

    monkeypatch.setattr(judge.model, "encode_pictures", counted)
    same = picture(50, 40, 1)
    same.save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    judge.judge_many([(same, picture(50, 40, i), STATEMENTS) for i in range(2, 7)])
    assert encoded == [6]
    judge.judge_many([(path, str(path), STATEMENTS), (path, same, STATEMENTS)])
    assert encoded == [6, 2]


def test_what_is_read_of_a_statement_is_told(judge: PairJudge) -> None:
    long = "both pictures contain a red circle and " * 4
    cut, odd = judge.judge(picture(9, 9), picture(9, 9), [long, "Both pictures: 犬!"])
    assert cut.cut
    assert cut.read_as.count("circle") < 3
    assert not odd.cut
    assert odd.unknown_words
    assert set(odd.to_json()) == {
        "statement",
        "probability",
        "answer",
        "read_as",
        "unknown_words",
        "cut",
    }


def test_what_cannot_be_asked_is_refused(judge: PairJudge, tmp_path: Path) -> None:
    one = picture(9, 9)
    with pytest.raises(UsageError, match="nothing is left"):
        judge.judge(one, one, ["?!"])
    with pytest.raises(UsageError, match="must be a list"):
        judge.judge(one, one, "both")
    with pytest.raises(UsageError, match="below 1"):
        judge.judge_many([], batch_size=0)
    with pytest.raises(DataError, match=r"none\.png"):
        judge.judge(one, tmp_path / "none.png", STATEMENTS)
    assert judge.judge_many([(one, one, [])]) == [[]]


def test_a_model_of_another_task_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot judge"):
        PairJudge.from_folder(make_model(tmp_path / "g"), "cpu")
    extra = write_pair_model(tmp_path / "extra", task="nlvr2_pretrain")
    with pytest.raises(CheckpointError, match="cannot judge"):
        PairJudge.from_folder(extra, "cpu")
    with pytest.raises(CheckpointError, match="is for nlvr2_pretrain, not for nlvr2"):
        find_checkpoint(extra, "nlvr2", {}, tmp_path)


def test_without_a_run_there_is_no_model_for_pairs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model for nlvr2") as caught:
        find_checkpoint(None, "nlvr2", {}, tmp_path)
    assert caught.value.try_
    assert find_checkpoint(folder, "nlvr2", {}, tmp_path).folder == folder


# ------------------------------------------------------------------ the drawing


def judgement(statement: str, probability: float) -> Judgement:
    return Judgement(statement, probability, statement)


def test_both_pictures_stand_side_by_side_over_the_answers() -> None:
    red, blue = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (80, 40), "blue")
    drawn = side_by_side(red, blue, [judgement("both are red", 0.1)])
    side = LEGIBLE_SIDE_PX
    assert drawn.width > 3 * side
    assert drawn.height > side
    assert drawn.getpixel((side // 2, side // 2)) == (255, 0, 0)
    assert drawn.getpixel((2 * side, side // 2)) == (0, 0, 255)
    other = side_by_side(red, blue, [judgement("both are red", 0.9)])
    assert drawn.size == other.size
    assert drawn.tobytes() != other.tobytes()


def test_any_shape_and_any_text_can_be_drawn() -> None:
    thin, tall = Image.new("L", (3000, 2)), Image.new("RGBA", (1, 900))
    many = [judgement("ein Satz ÿ \u202e" * 30, i / 99) for i in range(MOST_STATEMENTS + 3)]
    drawn = side_by_side(thin, tall, many)
    assert max(drawn.size) < 3000
    few = side_by_side(thin, tall, many[:MOST_STATEMENTS])
    assert drawn.height > few.height, "how many more there are is told"
