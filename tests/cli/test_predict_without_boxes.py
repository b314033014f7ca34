"""``predict grounding`` with proposals, explanations, and models that learnt without boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Run, write_model

ASK = ("predict", "grounding", "image.jpg", "red circle", "the blue square")


@pytest.fixture(scope="session")
def weak(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "weak"
    return write_model(folder, task="weak_grounding", heads=("contrastive", "matching"))


def found(result: Any) -> set[str]:
    return {g["found_by"] for row in result["pictures"] for g in row["groundings"]}


@pytest.mark.parametrize("task", ["weak_grounding", "retrieval"])
def test_a_model_without_boxes_says_how_it_found_them(
    task: str, xvlm: Run, picture: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path / task, task=task, heads=("contrastive", "matching"))
    done = xvlm(*ASK, "-c", model)
    assert done.code == 0
    assert "found without boxes: heat map of layer 3" in done.out
    result = xvlm(*ASK, "-c", model, "--json").document()["result"]
    assert found(result) <= {"heat map", "no heat"}
    assert result["model"]["finds_without_boxes"] is True
    assert result["model"]["cam_layer"] == 3
    for grounding in result["pictures"][0]["groundings"]:
        x1, y1, x2, y2 = grounding["box_xyxy_px"]
        assert 0 <= x1 < x2 <= 60
        assert 0 <= y1 < y2 <= 40
        assert 0 <= grounding["probability"] <= 1


def test_explain_draws_a_panel_a_word_beside_the_annotated_picture(
    xvlm: Run, picture: Path, model: Path, weak: Path
) -> None:
    for answering in (model, weak):
        done = xvlm(*ASK, "-c", answering, "--explain", "--json")
        (row,) = done.document()["result"]["pictures"]
        assert row["explained"] == "image.explained.png"
        written = json.loads(Path("image.grounded.json").read_text())
        assert written["explained"] == "image.explained.png"
        with Image.open("image.explained.png") as drawn:
            assert drawn.info["Software"] == "xvlm"
            # two rows: the phrase and two words, the phrase and three words
            assert 4 * 256 < drawn.width < 5 * 256
            assert 2 * 170 < drawn.height < 3 * 220
        plain = xvlm(*ASK, "-c", answering, "--explain")
        assert "Explained: image.explained.png" in plain.out
        assert "of whole phrases layer 3, of words layer 2" in plain.out
    folder = xvlm("predict", "grounding", ".", "red circle", "-c", model, "--dry-run", "--json")
    asked = [row["image"] for row in folder.document()["result"]["pictures"]]
    assert asked == ["image.jpg"], "what was drawn is no picture to be asked about"


def test_explain_replaces_no_file_of_others(
    xvlm: Run, picture: Path, model: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "image.explained.png"
    Image.new("RGB", (3, 3)).save(mine, "PNG")
    before = mine.read_bytes()
    assert "--overwrite" in xvlm(*ASK, "-c", model, "--explain").refusal(2)
    assert mine.read_bytes() == before
    assert xvlm(*ASK, "-c", model).code == 0, "without --explain it is not in the way"
    assert xvlm(*ASK, "-c", model, "--explain", "--overwrite").code == 0
    assert mine.read_bytes() != before
    xvlm(*ASK, "-c", model, "--explain", "--no-files").refusal(2)


def test_boxes_of_a_file_are_chosen_from(xvlm: Run, picture: Path, model: Path, weak: Path) -> None:
    boxes = [[0, 0, 20, 20], [10, 5, 50, 35]]
    line = {"image": "somewhere/image.jpg", "boxes": boxes}
    Path("boxes.jsonl").write_text(json.dumps(line) + "\n")
    for answering in (model, weak):
        done = xvlm(*ASK, "-c", answering, "--proposals", "boxes.jsonl", "--json")
        result = done.document()["result"]
        assert found(result) == {"proposal"}
        for grounding in result["pictures"][0]["groundings"]:
            assert grounding["box_xyxy_px"] in boxes
    told = xvlm(*ASK, "-c", weak, "--proposals", "boxes.jsonl")
    assert "the proposal with the most heat" in told.out


def test_pictures_without_proposals_are_said(
    xvlm: Run, picture: Path, model: Path, weak: Path
) -> None:
    lines = ({"image": "other.jpg", "boxes": [[0, 0, 2, 2]]},)
    Path("other.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = xvlm(*ASK, "-c", weak, "--proposals", "other.jsonl")
    assert done.code == 0
    assert "no proposals for image.jpg: the heat map's own box answers there" in done.err
    outside = {"image": "image.jpg", "boxes": [[900, 900, 950, 950], [5, 5, 5, 9]]}
    Path("outside.jsonl").write_text(json.dumps(outside))
    done = xvlm(*ASK, "-c", model, "--proposals", "outside.jsonl")
    assert done.code == 0
    assert "no proposal that is a box in the picture" in done.err


def test_boxes_of_a_store_are_found_by_the_pictures_name(
    xvlm: Run, weak: Path, tmp_path: Path
) -> None:
    from xvlm_core.data.store import Store
    from xvlm_core.sources.prepare import prepare

    options = {"train": 0, "val": 2, "test": 0, "unseen": 0, "workers": 1, "proposals": True}
    prepare("world", tmp_path / "world", options, command="x")
    record = Store.open(tmp_path / "world")[1]
    source = tmp_path / "world" / record.image
    done = xvlm(
        *("predict", "grounding", source, "red circle", "-c", weak, "--json"),
        *("--proposals", tmp_path / "world"),
    )
    (row,) = done.document()["result"]["pictures"]
    assert row["groundings"][0]["found_by"] == "proposal"
    assert tuple(row["groundings"][0]["box_xyxy_px"]) in record.proposals_xyxy_px


def test_a_store_without_proposals_is_refused(
    xvlm: Run, picture: Path, model: Path, world_store: Path
) -> None:
    assert "no proposals" in xvlm(*ASK, "-c", model, "--proposals", world_store).refusal(4)
    xvlm(*ASK, "-c", model, "--proposals", "not-there").refusal(4)


def test_many_phrases_and_pictures_in_one_call(xvlm: Run, weak: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "shots").mkdir()
    for number in range(20):
        pixels = rng.integers(0, 255, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "shots" / f"{number:02}.png")
    phrases = [f"{colour} {shape}" for colour in ("red", "blue") for shape in ("star", "circle")]
    done = xvlm("predict", "grounding", "shots", *phrases, "-c", weak, "--json", "--no-files")
    rows = done.document()["result"]["pictures"]
    assert [len(row["groundings"]) for row in rows] == [4] * 20
