from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.data.painted import TOKENIZER, painted_record, painted_store
from tests.tasks.recipes import MODEL
from xvlm_core.config.schema import ModelSection
from xvlm_core.data.batches import GroundingBatch, GroundingItem
from xvlm_core.data.images import read_picture
from xvlm_core.data.records import Record, Region
from xvlm_core.data.samples import BoxXYXY
from xvlm_core.data.store import Store
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.xvlm import XVLM, Grounded
from xvlm_core.tasks import grounding_eval
from xvlm_core.tasks.base import Prediction
from xvlm_core.tasks.grounding_eval import GroundingEvaluation, objects_of, predict, score

RED, BALL = (0.0, 0.0, 30.0, 30.0), (60.0, 20.0, 110.0, 80.0)


def record(root: Path, name: str, **more: Any) -> Record:
    return painted_record(
        root, name, [("red box", RED), ("green ball", BALL)], **{"absent": ("a dog",), **more}
    )


def evaluation(stores: Sequence[Store], split: str = "train", **more: Any) -> GroundingEvaluation:
    return GroundingEvaluation(
        stores, split, TOKENIZER, image_size=64, max_words=6, max_tokens=6, **more
    )


def items_of(batches: Sequence[GroundingBatch]) -> list[GroundingItem]:
    return [item for batch in batches for item in batch.items]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = [record(tmp_path, f"r{i}") for i in range(5)]
    made += [record(tmp_path, "other", split="test")]
    return painted_store(tmp_path / "store", tmp_path, made)


@pytest.mark.parametrize("pictures", [1, 2, 5, 32])
def test_every_phrase_of_the_split_comes_once(store: Store, pictures: int) -> None:
    batches = list(evaluation([store], batch_records=pictures).validation())
    items = items_of(batches)
    assert [item.id for item in items] == [f"r{i}#{k}" for i in range(5) for k in range(3)]
    assert [item.phrase for item in items[:3]] == ["red box", "green ball", "a dog"]
    assert [item.box_xyxy_px for item in items[:3]] == [RED, BALL, None]
    assert max(batch.n_pictures for batch in batches) <= pictures
    assert [len(batch.record_ids) for batch in batches] == [b.n_pictures for b in batches]
    for batch in batches:
        assert batch.present_B.tolist() == [item.box_xyxy_px is not None for item in batch.items]
        owners = [batch.record_ids[i] for i in batch.picture_of_text_B.tolist()]
        assert owners == [item.record for item in batch.items]


@pytest.fixture
def expressions(tmp_path: Path) -> Store:
    """Three pictures, four expressions of each, as RefCOCO has them: one a record, mixed."""
    firsts = [record(tmp_path, f"p{i}") for i in range(3)]
    made = [
        dataclasses.replace(
            one, id=f"{one.id}-{n}", regions=(Region(f"{text} box", RED, "phrase"),)
        )
        for n, text in enumerate(("red", "green", "a red", "the green"))
        for one in firsts
    ]
    return painted_store(tmp_path / "expressions", tmp_path, made)


def test_a_picture_of_many_expressions_is_read_and_encoded_once_a_batch(
    expressions: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    read: list[object] = []

    def spy(source: Any) -> Any:
        read.append(source)
        return read_picture(source)

    monkeypatch.setattr(grounding_eval, "read_picture", spy)

    def answers(batch_records: int) -> tuple[dict[str, Prediction], int]:
        read.clear()
        encoded = 0
        found: dict[str, Prediction] = {}
        with torch.no_grad():
            for batch in evaluation([expressions], batch_records=batch_records).validation():
                encoded += len(batch.pictures_ICHW)
                found |= {p["id"]: p for p in predict(model, batch)}
        assert len(read) == encoded
        return found, encoded

    alone, each = answers(1)
    assert (len(alone), each) == (24, 12)
    for batch_records, pictures in ((32, 3), (4, 3), (6, 4)):
        together, encoded = answers(batch_records)
        assert encoded == pictures
        assert together.keys() == alone.keys()
        for name, one in alone.items():
            other = dict(together[name])
            assert other.pop("box_xyxy_px") == pytest.approx(one["box_xyxy_px"], abs=1e-4)
            assert other.pop("probability") == pytest.approx(one["probability"], abs=1e-6)
            assert other == {key: one[key] for key in other}


def test_all_expressions_of_a_picture_that_cannot_be_read_are_left_out(expressions: Store) -> None:
    (expressions.folder.parent / "p1.png").write_bytes(b"no picture")
    one = evaluation([expressions])
    asked = items_of(list(one.validation()))
    assert {item.image for item in asked} == {"p0.png", "p2.png"}
    assert sum(one.dropped.values()) == 8
    assert len(asked) == 16


def test_pictures_of_the_same_name_in_two_stores_are_two(tmp_path: Path) -> None:
    stores = []
    for name in ("one", "two"):
        made = [record(tmp_path / name, "p")]
        stores.append(painted_store(tmp_path / name / "store", tmp_path / name, made))
    (batch,) = evaluation(stores).validation()
    assert batch.n_pictures == 2


def test_an_evaluation_can_be_repeated(store: Store) -> None:
    one = evaluation([store], batch_records=2)
    assert items_of(list(one.validation())) == items_of(list(one.validation()))
    assert not one.dropped


def test_many_phrases_of_few_pictures_are_several_batches(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grounding_eval, "MAX_PHRASES", 4)
    batches = list(evaluation([store]).validation())
    assert [len(batch.items) for batch in batches] == [6, 6, 3]


def test_at_most_so_many_pictures(store: Store) -> None:
    assert len(items_of(list(evaluation([store], limit=2).validation()))) == 6


def test_ids_are_unique_where_stores_have_the_same_records(store: Store, tmp_path: Path) -> None:
    twin = painted_store(tmp_path / "deep" / "store", tmp_path, [store[i] for i in range(5)])
    items = items_of(list(evaluation([store, twin]).validation()))
    assert len({item.id for item in items}) == len(items) == 30
    listed_twice = items_of(list(evaluation([store, Store.open(store.folder)]).validation()))
    assert len(listed_twice) == 15


def test_what_is_left_out_is_counted_and_listed_with_its_reason(tmp_path: Path) -> None:
    outside = Region("red box", (100.0, 0.0, 130.0, 30.0))
    made = [
        record(tmp_path, "fine"),
        record(tmp_path, "missing"),
        record(tmp_path, "turned"),
        dataclasses.replace(record(tmp_path, "empty"), absent=("?!", "a dog")),
        dataclasses.replace(record(tmp_path, "outside"), regions=(outside,)),
        dataclasses.replace(record(tmp_path, "nothing"), regions=(), absent=()),
    ]
    (tmp_path / "missing.png").unlink()
    Image.new("RGB", (90, 120)).save(tmp_path / "turned.png")
    store = painted_store(tmp_path / "store", tmp_path, made)
    one = evaluation([store], batch_records=2)
    batches = list(one.validation())
    read = sum(len(r.regions) + len(r.absent) for r in made)
    assert read == len(items_of(batches)) + sum(one.dropped.values())
    assert one.dropped == {
        "missing": 3,
        "size mismatch": 3,
        "empty text": 1,
        "box outside the picture": 1,
    }
    told = sum(sum(batch.dropped.values()) for batch in batches)
    assert told == sum(one.dropped.values())
    assert {line.split(": ")[1] for line in one.examples} == set(one.dropped)
    assert "empty#2: empty text" in one.examples


def test_pictures_without_any_phrase_left_give_no_batch(tmp_path: Path) -> None:
    bare = dataclasses.replace(record(tmp_path, "bare"), regions=(), absent=())
    store = painted_store(tmp_path / "store", tmp_path, [bare])
    assert list(evaluation([store]).validation()) == []


def test_a_finer_kind_comes_from_the_record_if_it_names_one_a_phrase(tmp_path: Path) -> None:
    meta = {
        "phrase_kinds": ["label", "unseen"],
        "absent_kinds": ["hard"],
        "absent_like": ["region"],
    }
    named = record(tmp_path, "named", **meta)
    wrong = record(tmp_path, "wrong", phrase_kinds=["label"], absent_kinds="hard")
    store = painted_store(tmp_path / "store", tmp_path, [named, wrong])
    items = items_of(list(evaluation([store]).validation()))
    assert [item.kind for item in items[:3]] == ["label", "unseen", "hard"]
    assert [item.kind for item in items[3:]] == ["object", "object", "absent"]
    assert [item.like for item in items[2::3]] == ["region", None]


def test_objects_are_those_of_the_scene_else_the_single_things(tmp_path: Path) -> None:
    plain = record(tmp_path, "plain")
    assert objects_of(plain) == (RED, BALL)
    box = [1.0, 2.0, 3.0, 4.0]
    scene = dataclasses.replace(plain, meta={"scene": [{"box_xyxy_px": box}]})
    assert objects_of(scene) == ((1.0, 2.0, 3.0, 4.0),)
    for damaged in ([{"box_xyxy_px": [1, 2]}], [{"box_xyxy_px": None}], ["x"], [], "x"):
        assert objects_of(dataclasses.replace(plain, meta={"scene": damaged})) == (RED, BALL)


def tiny_model() -> XVLM:
    torch.manual_seed(0)
    section = ModelSection.model_validate_json(json.dumps(MODEL))
    model = XVLM(section.shape(TOKENIZER.vocab_size, ("matching", "box"))).eval()
    with torch.no_grad():
        model.text.embeddings.word.weight.normal_()
        model.bbox_head[3].weight.mul_(4)
    return model


def test_predictions_do_not_depend_on_the_batches(store: Store) -> None:
    model = tiny_model()
    answers: list[list[Prediction]] = []
    with torch.no_grad():
        for pictures in (1, 3, 32):
            batches = evaluation([store], batch_records=pictures).validation()
            answers.append([p for batch in batches for p in predict(model, batch)])
    for other in answers[1:]:
        for one, again in zip(answers[0], other, strict=True):
            assert one["id"] == again["id"]
            assert one["box_xyxy_px"] == pytest.approx(again["box_xyxy_px"], abs=1e-3)
            assert one["probability"] == pytest.approx(again["probability"], abs=1e-5)
    assert json.loads(json.dumps(answers[0]))[0]["id"] == "r0#0"
    boxes = {tuple(p["box_xyxy_px"]) for p in answers[0]}
    assert len(boxes) >= 3, "phrases get different answers"


class Oracle:
    """Answers with given boxes."""

    def __init__(self, boxes_cxcywh: list[list[float]]) -> None:
        self.boxes_cxcywh = boxes_cxcywh

    def ground(self, pictures: object, texts: PackedTexts, picture: object) -> Grounded:
        boxes = torch.tensor(self.boxes_cxcywh)
        return Grounded(boxes, torch.full((len(boxes),), 0.25))


def test_boxes_are_in_pixels_of_the_original_picture_and_not_clipped(store: Store) -> None:
    (batch,) = evaluation([store], limit=1).validation()
    oracle = Oracle([[0.5, 0.5, 0.5, 0.2], [0.9, 0.1, 0.4, 0.4], [0.0, 0.0, 1.0, 1.0]])
    made = predict(oracle, batch)  # type: ignore[arg-type]
    assert made[0]["box_xyxy_px"] == pytest.approx([30, 36, 90, 54])
    assert made[1]["box_xyxy_px"] == pytest.approx([84, -9, 132, 27], abs=1e-4)
    assert made[2]["box_xyxy_px"] == pytest.approx([-60, -45, 60, 45])
    assert [p["present"] for p in made] == [True, True, False]
    assert {p["probability"] for p in made} == {0.25}


def prediction(
    number: int,
    box: Sequence[float],
    target: BoxXYXY | None,
    probability: float,
    kind: str,
    like: str | None,
    objects: tuple[BoxXYXY, ...] = (),
) -> Prediction:
    return {
        "id": f"r#{number}",
        "record": "r",
        "phrase": "x",
        "kind": kind,
        "like": like,
        "box_xyxy_px": list(box),
        "probability": probability,
        "present": target is not None,
        "target_xyxy_px": target,
        "other_targets_xyxy_px": (),
        "width": 100,
        "height": 100,
        "objects_xyxy_px": objects,
    }


OBJECTS = ((0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 90.0, 90.0))
HAND = [
    # exactly right
    prediction(0, (0, 0, 10, 10), OBJECTS[0], 0.9, "label", "object", OBJECTS),
    # 10 x 5 of 10 x 10: plain and inclusive IoU 0.5
    prediction(1, (0, 0, 10, 5), OBJECTS[0], 0.6, "label", "object", OBJECTS),
    # nothing shared
    prediction(2, (0, 0, 40, 40), OBJECTS[1], 0.4, "relation", "relation", OBJECTS),
    # one column of a box two wide: plain 0.5, inclusive none (an overlap of one pixel)
    prediction(3, (0, 0, 1, 10), (0.0, 0.0, 2.0, 10.0), 0.8, "relation", "relation", OBJECTS),
    prediction(4, (0, 0, 1, 1), None, 0.7, "hard", "object"),
    prediction(5, (0, 0, 1, 1), None, 0.1, "random", "object"),
]


def test_scores_are_those_worked_out_by_hand() -> None:
    scores = {name: s.value for name, s in score(HAND, "val").items()}
    assert scores["accuracy@0.5"] == pytest.approx(2 / 4)
    assert scores["accuracy@0.5 plain"] == pytest.approx(3 / 4)
    assert scores["mean IoU"] == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    assert scores["accuracy@0.5 [label]"] == 1
    assert scores["accuracy@0.5 [relation]"] == 0.5
    # a random object is right for the first three half of the time, never for the fourth
    assert scores["baseline: random object"] == pytest.approx(3 * 0.5 / 4)
    assert scores["baseline: best constant box"] == pytest.approx(2 / 4)
    # worded alike: present 0.9 and 0.6, absent 0.7 and 0.1: three of four pairs in order
    assert scores["presence AUC"] == pytest.approx(3 / 4)
    assert scores["presence AUC [hard]"] == pytest.approx(1 / 2)
    assert scores["presence AUC [random]"] == 1
    gaps = [0.1, 0.4, 0.6, 0.2, 0.7, 0.1]
    assert scores["presence ECE"] == pytest.approx(sum(gaps) / 6)


def test_baselines_too_may_name_any_of_the_things_that_a_phrase_fits() -> None:
    far = (60.0, 60.0, 90.0, 100.0)
    one = prediction(0, far, OBJECTS[0], 0.9, "label", "object", (*OBJECTS, far))
    many = {**one, "other_targets_xyxy_px": (far,)}
    for p, hit, random in ((one, 0, 1 / 3), (many, 1, 2 / 3)):
        scores = {name: s.value for name, s in score([p], "val").items()}
        assert scores["accuracy@0.5"] == hit
        assert scores["baseline: random object"] == pytest.approx(random)
    # no constant box is both things, but either is right for both phrases
    second = prediction(1, far, far, 0.9, "label", "object")
    second["other_targets_xyxy_px"] = (OBJECTS[0],)
    assert score([many, second], "val")["baseline: best constant box"].value == 1


def test_scores_name_their_split_convention_and_number() -> None:
    made = score(HAND, "testA")
    assert all(s.split == "testA" and s.convention for s in made.values())
    assert made["accuracy@0.5"].n == 4
    assert "inclusive" in made["accuracy@0.5"].convention
    assert made["accuracy@0.5 [label]"].n == 2
    assert made["presence AUC"].n == 4
    assert made["presence ECE"].n == 6


def test_scores_of_phrases_of_one_sort_alone() -> None:
    present, absent = HAND[:4], HAND[4:]
    assert "presence AUC" not in score(present, "val")
    assert "accuracy@0.5" in score(present, "val")
    assert score(absent, "val") == {}
    assert score([], "val") == {}


def test_an_id_counts_once() -> None:
    with pytest.raises(AssertionError, match="twice"):
        score([*HAND, HAND[0]], "val")


def test_references_are_the_phrases_without_a_look_at_a_picture(store: Store) -> None:
    one = evaluation([store])
    with torch.no_grad():
        made = [p for batch in one.validation() for p in predict(tiny_model(), batch)]
    for path in sorted(store.folder.parent.glob("*.png")):
        path.unlink()
    references = list(one.references())
    assert [r["id"] for r in references] == [p["id"] for p in made]
    for reference, prediction in zip(references, made, strict=True):
        answer = {name: prediction[name] for name in GroundingEvaluation.NO_ANSWER}
        assert {**reference, **answer} == prediction
        assert set(reference).isdisjoint(GroundingEvaluation.NO_ANSWER)
    assert one.score([{**r, **p} for r, p in zip(references, made, strict=True)]) == one.score(made)


def test_an_answer_that_is_missing_is_wrong_on_every_count() -> None:
    missing = [{**p, **GroundingEvaluation.NO_ANSWER} for p in HAND]
    scores = {name: s.value for name, s in score(missing, "val").items()}
    assert scores["accuracy@0.5"] == scores["accuracy@0.5 plain"] == scores["mean IoU"] == 0
    assert scores["presence AUC"] == 0
    assert scores["presence ECE"] == 1
    assert scores["false alarms [hard]"] == 1
    assert scores["baseline: random object"] == pytest.approx(3 * 0.5 / 4), "as it was"


def test_accuracy_by_the_size_of_the_thing_in_the_original_picture() -> None:
    """Areas 32 x 32 - 1, 32 x 32, 96 x 96 - 1 and 96 x 96: the limits belong to the larger size."""
    big = {"width": 640, "height": 480}
    made = []
    for number, (width, height) in enumerate(
        ((31.0, 33.0), (32.0, 32.0), (95.0, 97.0), (96.0, 96.0))
    ):
        target = (10.0, 20.0, 10.0 + width, 20.0 + height)
        box = target if number != 1 else (300.0, 300.0, 310.0, 310.0)
        made.append({**prediction(number, box, target, 0.5, "phrase", None), **big})
    scores = score(made, "val")
    found = {
        name.split(": ")[1].rstrip("]"): (s.value, s.n)
        for name, s in scores.items()
        if "[size: " in name
    }
    assert found == {"small": (1, 1), "medium": (0.5, 2), "large": (1, 1)}
    assert "px of the original" in scores["accuracy@0.5 [size: small]"].convention


def test_accuracies_have_an_interval_over_pictures() -> None:
    made = []
    for picture in range(40):
        for phrase in range(5):
            p = prediction(5 * picture + phrase, OBJECTS[picture % 2], OBJECTS[0], 0.5, "x", None)
            made.append({**p, "image": f"{picture}.jpg", "record": str(5 * picture + phrase)})
    scores = score(made, "val")
    found = scores["accuracy@0.5"].interval
    assert found is not None
    # 40 pictures, half of them right, all phrases of one alike: 1.96 x sqrt(1/4 / 40)
    assert found == pytest.approx((0.5 - 0.155, 0.5 + 0.155), abs=0.03)
    assert scores["accuracy@0.5 [x]"].interval == found
    assert scores["baseline: random object"].interval is None
    one_picture = score([{**p, "image": "0.jpg"} for p in made], "val")
    assert one_picture["accuracy@0.5"].interval is None


@pytest.mark.parametrize("world", [2, 3, 7])
def test_any_number_of_ranks_has_the_same_figures(store: Store, world: int) -> None:
    """Five pictures divide by none of them; seven ranks leave some without any."""
    model, one = tiny_model(), evaluation([store], batch_records=2)

    def answers(ranks: int) -> list[Prediction]:
        shares = [list(one.validation(rank, ranks)) for rank in range(ranks)]
        with torch.no_grad():
            return [p for share in shares for batch in share for p in predict(model, batch)]

    alone, together = answers(1), answers(world)
    assert together == alone, "to the last bit: a batch is the same on any number of ranks"
    assert one.score(together) == one.score(alone)
