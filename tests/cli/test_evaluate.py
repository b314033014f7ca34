from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import Run, write_model
from tests.train.ranks import free_port
from xvlm_core.data.manifest import MANIFEST, Manifest
from xvlm_core.data.store import Store
from xvlm_core.metrics.calibration import ece


def test_every_score_has_its_convention_and_number(
    xvlm: Run, model: Path, world_store: Path
) -> None:
    words = ("evaluate", "grounding", "-c", model, "--data", world_store, "--split", "val")
    document = xvlm(*words, "--json").document()
    scores = document["result"]["scores"]
    assert {"accuracy@0.5", "accuracy@0.5 plain", "presence AUC"} <= set(scores)
    for score in scores.values():
        assert score["convention"]
        assert score["split"] == "val"
        assert score["n"] > 0
    text = xvlm(*words).out
    assert "inclusive-pixel IoU" in text
    assert "--checkpoint" in text, "which model answered"


def test_predictions_are_written_once_each(xvlm: Run, model: Path, world_store: Path) -> None:
    words = ("evaluate", "grounding", "-c", model, "--data", world_store, "-o", "out/p.jsonl")
    document = xvlm(*words, "--json").document()
    rows = [json.loads(line) for line in Path("out/p.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    scores = document["result"]["scores"]
    assert sum(row["present"] for row in rows) == scores["accuracy@0.5"]["n"]
    assert "--overwrite" in xvlm(*words).refusal(2)
    assert xvlm(*words, "--overwrite").code == 0


def test_a_recipe_names_the_store_and_the_split(xvlm: Run, model: Path, world_store: Path) -> None:
    shutil.copytree(world_store, "data/world")
    result = xvlm("evaluate", "world", "-c", model, "--json").document()["result"]
    assert (result["data"], result["split"]) == ("data/world", "val")


def test_limit_counts_pictures(xvlm: Run, model: Path, world_store: Path) -> None:
    words = ("evaluate", "grounding", "-c", model, "--data", world_store, "--json")
    every = xvlm(*words).document()["result"]["scores"]["accuracy@0.5"]["n"]
    first = xvlm(*words, "--limit", "1").document()["result"]["scores"]["accuracy@0.5"]["n"]
    assert 0 < first < every


def test_pictures_that_are_gone_are_said(xvlm: Run, model: Path, world_store: Path) -> None:
    shutil.copytree(world_store, "world")
    for path in sorted(Path("world").rglob("*.png")):
        if "val" in path.as_posix():
            path.unlink()
            break
    words = ("evaluate", "grounding", "-c", model, "--data", "world", "--json")
    document = xvlm(*words).document()
    assert document["result"]["dropped"]["missing"] > 0
    names = document["result"]["dropped_examples"]["missing"]
    assert len(names) == 1, "the record of the picture"
    assert any(f"missing ({names[0]}" in warning for warning in document["warnings"])


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("grounding",), 2, "which data"),
        (("groundin", "--data", "x"), 2, "no task"),
        (("grounding", "--data", "gone"), 4, "no prepared data in gone"),
        (("grounding", "--data", "STORE", "--split", "vall"), 4, "no record of split 'vall'"),
        (("grounding", "--data", "STORE", "-c", "gone"), 5, "gone"),
        (("refcoco+",), 4, "data/refcoco+"),
        (("grounding", "--data", "STORE", "--split", ","), 2, "names no split"),
        (("grounding", "scoring.cam_layer=3", "--data", "STORE"), 2, "only a recipe has values"),
        (("world", "nonsense=1", "--data", "STORE"), 3, "nonsense"),
        (("grounding", "--data", "STORE", "--calibrate-on", "val"), 2, "would flatter"),
        (("grounding", "--data", "STORE", "--calibrate-on", "gone"), 4, "no record of split"),
        (("nlvr2", "--data", "STORE", "--calibrate-on", "train"), 2, "nothing to calibrate"),
        (("grounding", "--data", "STORE", "--calibrate-on", "train"), 2, "that is trained on"),
        (("world", "--data", "STORE", "data.train_split=x", "--calibrate-on", "x"), 2, "trained"),
        (("nlvr2", "--data", "STORE"), 4, "no pair of pictures of split 'val'"),
        (("grounding", "--data", "STORE", "--allow-missing"), 2, "none are given"),
        (("grounding", "--data", "STORE", "--device", "tpu"), 2, "no such device"),
        (("grounding", "--data", "STORE", "-p", "x", "-o", "y"), 2, "there already"),
        (("grounding", "--data", "STORE", "-p", "gone.jsonl"), 4, "cannot be read"),
        (("grounding", "--data", "STORE", "-s", "all,", "-o", "p.jsonl"), 4, "split 'all'"),
        (("grounding", "--data", "STORE", "-s", "val,train", "-o", "p.jsonl"), 2, "is one file"),
    ],
)
def test_what_is_refused(
    words: tuple[str, ...], code: int, says: str, xvlm: Run, world_store: Path
) -> None:
    given = [str(world_store) if word == "STORE" else word for word in words]
    assert says in xvlm("evaluate", *given).refusal(code)


# ---------------------------------------------------------------------- predictions


def lines_of(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "own")


def test_predictions_are_always_written_beside_the_model(
    xvlm: Run, own_model: Path, world_store: Path
) -> None:
    words = ("evaluate", "grounding", "-c", own_model, "--data", world_store, "--json")
    result = xvlm(*words).document()["result"]
    path = own_model / "evaluations" / "grounding-world-val.jsonl"
    assert result["predictions"] == str(path)
    first = path.read_text()
    assert xvlm(*words).code == 0, "again: the same name, in one step"
    assert path.read_text() == first
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    limited = xvlm(*words, "--limit", "1").document()["result"]["predictions"]
    assert limited != str(path), "a part does not take the place of the whole"
    assert xvlm(*words, "--no-files").document()["result"]["predictions"] is None


def test_predictions_of_a_run_are_in_the_run(
    xvlm: Run, pretrained: Path, world_store: Path
) -> None:
    words = ("evaluate", "grounding", "-c", pretrained, "--data", world_store, "--json")
    result = xvlm(*words).document()["result"]
    assert result["predictions"] == str(pretrained / "evaluations" / "grounding-world-val.jsonl")


def test_predictions_of_a_model_that_is_not_ones_own_are_here(
    xvlm: Run, own_model: Path, world_store: Path
) -> None:
    words = ("evaluate", "grounding", "--data", world_store, "--limit", "1", "--json")
    built_in = xvlm(*words, "-c", "builtin").document()["result"]
    assert built_in["predictions"] == "evaluations/grounding-world-val-first1.jsonl"
    assert Path(built_in["predictions"]).is_file()
    (own_model / "evaluations").write_text("in the way")
    other = xvlm(*words, "-c", own_model)
    assert other.document()["result"]["predictions"] == built_in["predictions"]
    assert "predictions go to evaluations/" in other.err


def test_a_place_that_cannot_be_written_is_an_error(
    xvlm: Run, model: Path, world_store: Path
) -> None:
    Path("file").write_text("in the way")
    words = ("evaluate", "grounding", "-c", model, "--data", world_store, "-o", "file/p.jsonl")
    assert "file" in xvlm(*words).refusal(2)
    assert Path("file").read_text() == "in the way"


@pytest.fixture
def saved(xvlm: Run, model: Path, world_store: Path) -> Path:
    words = ("evaluate", "grounding", "-c", model, "--data", world_store, "-o", "p.jsonl")
    assert xvlm(*words).code == 0
    return Path("p.jsonl")


def test_saved_predictions_have_the_figures_of_their_run_to_the_last_digit(
    xvlm: Run, model: Path, world_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("evaluate", "grounding", "--data", world_store, "--split", "val,train", "--json")
    ran = xvlm(*words, "-c", model, "-o", "out").document()["result"]["splits"]
    rows = [row for split in ran.values() for row in lines_of(split["predictions"])]
    rows.reverse()
    for row in rows:  # the answers alone, in another order: nothing else of a line is read
        for name in set(row) - {"id", "box_xyxy_px", "probability"}:
            row[name] = "made up"
    path = write_lines(Path("mine.jsonl"), rows)
    monkeypatch.setattr("xvlm_core.data.store.Store.picture", None)  # no picture is opened
    scored = xvlm(*words, "--predictions", path).document()["result"]
    assert scored["model"] is None
    for split, value in scored["splits"].items():
        assert value["scores"] == ran[split]["scores"]
        assert value["presence"] == ran[split]["presence"]
    alone = xvlm("evaluate", "grounding", "-p", ran["val"]["predictions"], "--data", world_store)
    assert f"{ran['val']['scores']['accuracy@0.5']['value']:.4f}" in alone.out


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda rows: [*rows, rows[0], rows[2]], "2 ids of q.jsonl are answered more than once"),
        (lambda rows: [*rows, {**rows[0], "id": "new"}], "1 id of q.jsonl is not in the data"),
        (lambda rows: rows[2:], "2 items of the data have no prediction"),
        (lambda rows: [{**rows[0], "probability": 2}, *rows[1:]], "q.jsonl, line 1"),
    ],
)
def test_predictions_that_do_not_fit_the_data_are_refused(
    damage: Any, says: str, xvlm: Run, world_store: Path, saved: Path
) -> None:
    path = write_lines(Path("q.jsonl"), damage(lines_of(saved)))
    assert says in xvlm("evaluate", "grounding", "-p", path, "--data", world_store).refusal(4)


def test_missing_predictions_may_be_counted_as_wrong(
    xvlm: Run, world_store: Path, saved: Path
) -> None:
    rows = lines_of(saved)
    perfect = [{**row, "box_xyxy_px": row["target_xyxy_px"] or [0, 0, 1, 1]} for row in rows]
    present = [row for row in perfect if row["present"]]
    gone = {row["id"] for row in present[:3]}
    path = write_lines(Path("q.jsonl"), [row for row in perfect if row["id"] not in gone])
    words = ("evaluate", "grounding", "-p", path, "--data", world_store, "--allow-missing")
    document = xvlm(*words, "--json").document()
    score = document["result"]["scores"]["accuracy@0.5"]
    assert score["n"] == len(present)
    assert score["value"] == pytest.approx(1 - 3 / len(present))
    assert set(document["result"]["missing"]) == gone
    assert any("3 missing, counted as wrong" in warning for warning in document["warnings"])


def test_what_would_be_done(xvlm: Run, model: Path, world_store: Path) -> None:
    words = ("evaluate", "grounding", "-c", model, "--data", world_store, "--dry-run")
    document = xvlm(*words, "--split", "train", "--calibrate-on", "val", "--json").document()
    result = document["result"]
    store = Store.open(world_store)
    for split, pictures in (("train", 12), ("val", 4)):
        records = [store[int(n)] for n in store.indices(split)]
        assert result["splits"][split]["pictures"] == len(records) == pictures
        said = sum(len(record.regions) + len(record.absent) for record in records)
        assert 0.8 * said < result["splits"][split]["expressions"] <= said
    assert len(result["write"]) == 2
    text = xvlm(*words, "--limit", "3", "-o", "here.jsonl").out
    assert "would write here.jsonl" in text
    assert "split val: 3 pictures, " in text
    assert " expressions" in text
    assert not Path("here.jsonl").exists()


# ---------------------------------------------------------------------- figures


def test_several_splits_have_their_own_figures(xvlm: Run, model: Path, world_store: Path) -> None:
    words = ("evaluate", "grounding", "-c", model, "--data", world_store)
    both = xvlm(*words, "--split", "val, train", "--json").document()["result"]
    assert list(both["splits"]) == ["val", "train"]
    alone = xvlm(*words, "--split", "train", "--json").document()["result"]
    assert (
        both["splits"]["train"]["scores"] == alone["scores"] == alone["splits"]["train"]["scores"]
    )
    assert {s["split"] for s in both["splits"]["train"]["scores"].values()} == {"train"}
    assert "scores" not in both, "of which split?"
    every = xvlm(*words, "--split", "all", "--json").document()["result"]
    assert list(every["splits"]) == ["val"], "not the one that is trained on"


def test_accuracies_are_shown_with_their_interval(
    xvlm: Run, model: Path, world_store: Path
) -> None:
    words = ("evaluate", "grounding", "-c", model, "--data", world_store)
    score = xvlm(*words, "--json").document()["result"]["scores"]["mean IoU"]
    low, high = score["interval"]
    assert low < score["value"] < high
    assert f"[{low:.4f}, {high:.4f}]" in xvlm(*words).out


def test_a_temperature_is_fitted_on_another_split_than_is_scored(
    xvlm: Run, model: Path, world_store: Path
) -> None:
    task, splits = ("evaluate", "grounding"), ("--split", "train", "--calibrate-on", "val")
    words = (*task, "-c", model, "--data", world_store, *splits, "-o", "out")
    result = xvlm(*words, "--json").document()["result"]
    assert list(result["splits"]) == ["train"]
    temperature = result["temperature"]
    assert temperature["split"] == "val"
    assert temperature["loss_after"] <= temperature["loss_before"]
    assert len(lines_of(temperature["predictions"])) == temperature["n"]
    rows = lines_of(result["predictions"])
    said = np.array([row["probability"] for row in rows])
    truth = [row["present"] for row in rows]
    presence = result["presence"]
    assert presence["as_said"]["ece"] == pytest.approx(ece(said, truth))
    logits = np.log(said / (1 - said)) / temperature["value"]
    assert presence["after"]["ece"] == pytest.approx(ece(1 / (1 + np.exp(-logits)), truth))
    assert sum(row["n"] for row in presence["as_said"]["rows"]) == len(rows)
    low, high = presence["as_said"]["interval"]
    text = xvlm(*words, "--overwrite").out
    assert f"ECE {presence['as_said']['ece']:.4f} [{low:.4f}, {high:.4f}]" in text
    assert f"temperature {temperature['value']:.4f}" in text
    assert "with the temperature" in text
    saved = write_lines(Path("both.jsonl"), [*rows, *lines_of(temperature["predictions"])])
    again = xvlm(*task, "-p", saved, "--data", world_store, *splits, "--json").document()["result"]
    assert again["temperature"]["value"] == temperature["value"]


@pytest.fixture
def called_refcoco(world_store: Path, tmp_path: Path) -> Path:
    """The world under the name and with the manifest of another data set."""
    folder = tmp_path / "refcoco+"
    shutil.copytree(world_store, folder)
    path = folder / MANIFEST
    manifest = Manifest.model_validate_json(path.read_bytes())
    command = "xvlm prepare-data refcoco FOLDER -o data/refcoco+"
    other = manifest.model_copy(update={"source": "refcoco", "command": command})
    path.write_text(other.sealed().model_dump_json())
    return folder


def test_the_figure_of_the_paper_is_shown_for_its_data_alone(
    xvlm: Run, model: Path, world_store: Path, called_refcoco: Path
) -> None:
    words = ("evaluate", "grounding", "-c", model, "--no-files")
    text = xvlm(*words, "--data", called_refcoco).out
    assert "80.17 (4M), 84.51 (16M), Table 3" in text
    assert "10,758 in the official split" in text
    assert "of size tiny" in text
    document = xvlm(*words, "--data", called_refcoco, "--json").document()
    scores = document["result"]["scores"]
    assert scores["accuracy@0.5"]["reference"] == "80.17 (4M), 84.51 (16M), Table 3"
    assert scores["accuracy@0.5 plain"]["reference"] is None
    assert document["result"]["differences_from_the_paper"]
    assert "the paper" not in xvlm(*words, "--data", called_refcoco, "-s", "train").out
    shutil.copytree(world_store, "other/refcoco+")
    assert "the paper" not in xvlm(*words, "--data", "other/refcoco+").out


@pytest.mark.parametrize(
    ("task", "other"),
    [("weak_grounding", "retrieval"), ("weak_grounding", "pretrain"), ("grounding", "pretrain")],
)
def test_a_model_of_another_task_has_no_row(
    task: str, other: str, xvlm: Run, called_refcoco: Path, tmp_path: Path
) -> None:
    """It can be asked, but it is not what the paper's figure is of."""
    for trained_for, has_row in ((other, False), (task, True)):
        heads = ("matching", "contrastive", "box")
        model = write_model(tmp_path / trained_for, task=trained_for, heads=heads)
        words = ("evaluate", task, "-c", model, "--data", called_refcoco, "--no-files", "--json")
        result = xvlm(*words).document()["result"]
        assert (result["scores"]["accuracy@0.5"]["reference"] is not None) == has_row
        assert bool(result["differences_from_the_paper"]) == has_row
    told = "; ".join(result["differences_from_the_paper"])
    assert "how the model here was trained is not recorded" in told
    assert ("MAttNet" in told) == (task == "weak_grounding")


@pytest.fixture
def recorded(pretrained: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint, which says how it came about, called one of weak grounding."""
    folder = tmp_path / "recorded"
    shutil.copytree(pretrained / "checkpoints" / "step-00000002", folder)
    (folder / "MANIFEST.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "task": "weak_grounding"}))
    return folder


def test_what_is_recorded_of_the_model_is_told_beside_the_paper(
    xvlm: Run, recorded: Path, called_refcoco: Path
) -> None:
    words = ("evaluate", "weak_grounding", "-c", recorded, "--data", called_refcoco, "--json")
    document = xvlm(*words, "-o", "w.jsonl").document()
    told = "; ".join(document["result"]["differences_from_the_paper"])
    assert "pre-trained on the stores world here; the paper's 4M" in told
    assert "without proposals here" in told
    rows = lines_of("w.jsonl")
    for row in rows:
        row["found_by"] = "proposal"
    other = write_lines(Path("other.jsonl"), rows)
    told = "; ".join(xvlm(*words, "-p", other).document()["result"]["differences_from_the_paper"])
    assert "one of the proposals of the records themselves here" in told
    assert "pre-trained on the stores world here" in told
    words = ("evaluate", "weak_grounding", "-p", other, "--data", called_refcoco, "--json")
    told = "; ".join(xvlm(*words).document()["result"]["differences_from_the_paper"])
    assert "which model answered is not known" in told
    assert "pre-trained" not in told


def test_a_damaged_record_is_said_and_the_model_answers(
    xvlm: Run, recorded: Path, called_refcoco: Path
) -> None:
    (recorded / "provenance.json").write_text("{")
    words = ("evaluate", "weak_grounding", "-c", recorded, "--data", called_refcoco, "--no-files")
    document = xvlm(*words, "--json").document()
    assert any("how the model was trained" in warning for warning in document["warnings"])
    assert "is not recorded" in "; ".join(document["result"]["differences_from_the_paper"])


def test_a_temperature_is_not_fitted_on_what_this_very_model_learnt_from(
    xvlm: Run, recorded: Path, world_store: Path
) -> None:
    path = recorded / "provenance.json"
    record = json.loads(path.read_text())
    record["recipe"]["data"]["train_split"] = "val"
    path.write_text(json.dumps(record))
    words = ("evaluate", "weak_grounding", "-c", recorded, "--data", world_store)
    said = xvlm(*words, "--split", "train", "--calibrate-on", "val").refusal(2)
    assert "--calibrate-on val is the split that is trained on" in said


def test_a_pretrained_model_has_no_row_of_fine_tuned_ones(
    xvlm: Run, pretrained: Path, called_refcoco: Path
) -> None:
    words = ("evaluate", "grounding", "-c", pretrained, "--data", called_refcoco, "--no-files")
    assert "the paper" not in xvlm(*words).out


# ---------------------------------------------------------------------- other tasks


def test_a_pretrained_model_retrieves_as_it_is(
    xvlm: Run, pretrained: Path, world_store: Path
) -> None:
    words = ("evaluate", "retrieval", "--data", world_store, "--split", "train")
    ran = xvlm(*words, "-c", pretrained, "-o", "r.jsonl", "--json").document()["result"]
    assert {"text R@1", "image R@1", "text R@1 by similarity"} <= set(ran["scores"])
    assert ran["scores"]["text R@1"]["n"] == 12
    scored = xvlm(*words, "-p", "r.jsonl", "--json").document()["result"]
    assert scored["scores"] == ran["scores"]


def test_a_model_without_boxes_is_asked_by_its_heat_maps(
    xvlm: Run, pretrained: Path, world_store: Path
) -> None:
    words = ("evaluate", "weak_grounding", "--data", world_store)
    ran = xvlm(*words, "-c", pretrained, "-o", "w.jsonl", "--json").document()["result"]
    scored = xvlm(*words, "-p", "w.jsonl", "--json").document()["result"]
    assert scored["scores"] == ran["scores"]
    assert "phrases with proposals" in ran["scores"]
    rows = lines_of("w.jsonl")
    for row in rows:
        del row["found_by"], row["proposal_score"]
    other = write_lines(Path("other.jsonl"), rows)
    scores = xvlm(*words, "-p", other, "--json").document()["result"]["scores"]
    assert scores["accuracy@0.5"] == ran["scores"]["accuracy@0.5"]
    assert "phrases with proposals" not in scores, "how the boxes were found is not known"


# ---------------------------------------------------------------------- several processes


def test_processes_of_torchrun_share_the_work_and_one_speaks(
    xvlm: Run, model: Path, world_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evaluate", "grounding", "-c", str(model), "--data", str(world_store), "--json"]
    alone = xvlm(*words, "-o", "alone.jsonl").document()["result"]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "xvlm_cli", *words, "-o", "both.jsonl"]
    other = subprocess.Popen(
        command,
        env={**os.environ, **common, "RANK": "1", "LOCAL_RANK": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    for name, value in {**common, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    try:
        result = xvlm(*words, "-o", "both.jsonl").document()["result"]
        out, err = other.communicate(timeout=150)
    finally:
        other.kill()
    assert (other.returncode, out) == (0, ""), err
    assert "answers" not in err, "one of them says which model it is"
    assert result["scores"]["accuracy@0.5"] == alone["scores"]["accuracy@0.5"]
    ours, theirs = lines_of("alone.jsonl"), lines_of("both.jsonl")
    assert [row["id"] for row in ours] == [row["id"] for row in theirs]
    for one, same in zip(ours, theirs, strict=True):
        assert one["box_xyxy_px"] == pytest.approx(same["box_xyxy_px"], abs=1e-3)
