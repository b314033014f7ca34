from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.inference.conftest import MakeModel
from xvlm_core.errors import CheckpointError
from xvlm_core.inference import checkpoints as module
from xvlm_core.inference.checkpoints import find_checkpoint
from xvlm_core.inference.predictor import Predictor
from xvlm_core.train import checkpoint as run_checkpoints
from xvlm_core.train.runs import RunWarning

real_builtin_folder = module.builtin_folder


@pytest.fixture(autouse=True)
def no_builtin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "builtin_folder", lambda: None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


class Runs:
    """Makes run folders with whole checkpoints."""

    def __init__(self, root: Path, make_model: MakeModel) -> None:
        self.root, self.make_model, self.made = root, make_model, 0

    def __call__(self, name: str, task: str, steps: tuple[int, ...] = (100,), **model: str) -> Path:
        self.made += 1
        run = self.root / name
        run.mkdir(parents=True)
        content = {
            "schema": 1,
            "task": task,
            "recipe": "r",
            "command": "xvlm",
            "created": f"2026-01-01T00:00:{self.made:02}.000000+00:00",
            "status": "interrupted",
            "size": "tiny",
        }
        (run / "run.json").write_text(json.dumps(content))
        for step in steps:
            run_checkpoints.write(
                run / "checkpoints",
                step,
                lambda folder: self.make_model(folder, **{"task": task, **model}),
                keep_last=9,
                keep=(),
            )
        return run


@pytest.fixture
def make_run(root: Path, make_model: MakeModel) -> Runs:
    return Runs(root, make_model)


def refused(what: str, explicit: object, root: Path, **environ: str) -> CheckpointError:
    with pytest.raises(CheckpointError, match=what) as caught:
        find_checkpoint(explicit, "grounding", environ, root)  # type: ignore[arg-type]
    assert caught.value.exit_code == 5
    assert caught.value.try_
    assert "\n" not in caught.value.what
    return caught.value


# ---------------------------------------------------------------- the order


def test_the_order_is_flag_environment_newest_run_builtin(
    make_run: Runs,
    make_model: MakeModel,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run("grounding-a", "grounding")
    flag, variable, packaged = (make_model(tmp_path / name) for name in ("f", "v", "p"))
    monkeypatch.setattr(module, "builtin_folder", lambda: packaged)
    environ = {"XVLM_CHECKPOINT": str(variable)}

    found = find_checkpoint(flag, "grounding", environ, root)
    assert (found.folder, found.builtin) == (flag, False)
    assert str(flag) in found.origin

    found = find_checkpoint(None, "grounding", environ, root)
    assert found.folder == variable
    assert "XVLM_CHECKPOINT" in found.origin

    found = find_checkpoint(None, "grounding", {"XVLM_CHECKPOINT": ""}, root)
    assert found.folder == run / "checkpoints" / "step-00000100"
    assert "grounding-a" in found.origin
    assert "step 100" in found.origin

    shutil.rmtree(root)
    found = find_checkpoint(None, "grounding", {}, root)
    assert (found.folder, found.builtin) == (packaged, True)
    assert "coloured shapes only" in found.origin
    assert find_checkpoint("builtin", "grounding", environ, root) == found


def test_a_grounding_run_is_preferred_to_a_newer_pretraining_run_which_fits_too(
    make_run: Runs, root: Path
) -> None:
    old = make_run("pretrain-old", "pretrain")
    assert find_checkpoint(None, "grounding", {}, root).folder.is_relative_to(old)
    tuned = make_run("grounding-mid", "grounding")
    newest = make_run("pretrain-new", "pretrain")
    assert find_checkpoint(None, "grounding", {}, root).folder.is_relative_to(tuned)
    assert find_checkpoint(None, "pretrain", {}, root).folder.is_relative_to(newest)


def test_phrases_are_found_by_models_without_boxes_and_boxes_are_scored_by_those_with_them(
    make_run: Runs, root: Path
) -> None:
    heads = ("contrastive", "matching")
    lone = make_run("retrieval-a", "retrieval", heads=heads)  # type: ignore[arg-type]
    ask = module.PREDICT_GROUNDING
    assert find_checkpoint(None, ask, {}, root).folder.is_relative_to(lone)
    pretrained = make_run("pretrain-b", "pretrain")
    assert find_checkpoint(None, ask, {}, root).folder.is_relative_to(pretrained)
    weak = make_run("weak-c", "weak_grounding", heads=heads)  # type: ignore[arg-type]
    assert find_checkpoint(None, ask, {}, root).folder.is_relative_to(weak)
    assert find_checkpoint(None, "weak_grounding", {}, root).folder.is_relative_to(weak)
    assert find_checkpoint(None, "grounding", {}, root).folder.is_relative_to(pretrained)
    with pytest.raises(CheckpointError, match="for weak_grounding, not for grounding"):
        find_checkpoint(weak, "grounding", {}, root)
    tuned = make_run("grounding-d", "grounding")
    assert find_checkpoint(None, ask, {}, root).folder.is_relative_to(tuned)


def test_a_run_without_a_whole_checkpoint_is_passed_over(make_run: Runs, root: Path) -> None:
    good = make_run("grounding-a", "grounding")
    make_run("grounding-b", "grounding", steps=())
    damaged = make_run("grounding-c", "grounding")
    with (damaged / "checkpoints/step-00000100/model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.warns(run_checkpoints.CheckpointWarning):
        found = find_checkpoint(None, "grounding", {}, root)
    assert found.folder.is_relative_to(good)


def test_a_run_whose_model_cannot_find_phrases_is_passed_over_with_a_warning(
    make_run: Runs, root: Path
) -> None:
    good = make_run("pretrain-a", "pretrain")
    make_run("pretrain-b", "pretrain", heads=("contrastive", "masked_lm"))  # type: ignore[arg-type]
    with pytest.warns(RunWarning, match=r"pretrain-b is passed over.*no box"):
        found = find_checkpoint(None, "grounding", {}, root)
    assert found.folder.is_relative_to(good)


def test_the_environment_says_where_runs_are(make_run: Runs, root: Path) -> None:
    run = make_run("grounding-a", "grounding")
    found = find_checkpoint(None, "grounding", {"XVLM_RUNS": str(root)})
    assert found.folder.is_relative_to(run)


def test_the_builtin_model_is_a_folder_of_the_package(
    make_model: MakeModel, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.resources, "files", lambda name: tmp_path / name)
    monkeypatch.setattr(module, "builtin_folder", real_builtin_folder)
    refused("no built-in model", "builtin", root)
    folder = make_model(tmp_path / "xvlm_core.inference" / "builtin")
    assert find_checkpoint(None, "grounding", {}, root).folder == folder


def test_the_packaged_model_serves_grounding(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    if real_builtin_folder() is None:
        pytest.skip("no built-in model in this checkout")
    monkeypatch.setattr(module, "builtin_folder", real_builtin_folder)
    found = find_checkpoint("builtin", "grounding", {}, root)
    circle = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(circle).ellipse((20, 30, 60, 70), fill=(220, 40, 40))
    here, absent = Predictor.from_folder(found.folder, "cpu").ground(
        circle, ["red circle", "blue square"]
    )
    assert here.unknown_words == absent.unknown_words == ()
    assert here.probability > absent.probability


# ---------------------------------------------------------------- what may be named


def test_a_run_may_be_named_by_folder_or_name_and_its_best_checkpoint_is_taken(
    make_run: Runs, root: Path
) -> None:
    run = make_run("grounding-a", "grounding", steps=(100, 200, 300))
    newest = find_checkpoint(run, "grounding", {}, root)
    assert newest.folder.name == "step-00000300"
    (run / "best.json").write_text('{"step": 200, "score": "accuracy", "value": 0.5}')
    best = find_checkpoint("grounding-a", "grounding", {}, root)
    assert best.folder == run / "checkpoints" / "step-00000200"
    assert "step 200" in best.origin
    one = find_checkpoint(run / "checkpoints" / "step-00000100", "grounding", {}, root)
    assert one.folder.name == "step-00000100"


def test_a_file_of_a_model_folder_names_the_folder(
    make_model: MakeModel, root: Path, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "m")
    named = find_checkpoint(folder / "model.safetensors", "grounding", {}, root)
    assert named.folder == folder


# ---------------------------------------------------------------- refusals


def test_what_is_not_there_is_refused_and_never_passed_over(make_run: Runs, root: Path) -> None:
    make_run("grounding-a", "grounding")
    assert refused("no model at nowhere", "nowhere", root).where == "--checkpoint"
    error = refused("no model at gone", None, root, XVLM_CHECKPOINT="gone")
    assert error.where == "XVLM_CHECKPOINT"


def test_what_is_no_model_folder_is_refused(root: Path, tmp_path: Path) -> None:
    refused("not a model folder", tmp_path, root)
    (tmp_path / "weights.pth").write_bytes(b"x")
    refused("is a file, not a model folder", tmp_path / "weights.pth", root)


def test_a_run_without_checkpoint_is_refused_when_named(make_run: Runs, root: Path) -> None:
    refused("no complete checkpoint", make_run("grounding-a", "grounding", steps=()), root)


def test_a_truncated_model_is_refused(make_model: MakeModel, root: Path, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    refused("damaged or truncated", folder, root)
    weights.unlink()
    refused("has no model.safetensors", folder, root)


def test_a_checkpoint_with_one_bit_changed_is_refused_when_named(
    make_run: Runs, root: Path
) -> None:
    run = make_run("grounding-a", "grounding")
    (folder,) = (run / "checkpoints").iterdir()
    assert find_checkpoint(folder, "grounding", {}, root).folder == folder
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    refused("was changed", folder, root)


def test_a_model_without_tokenizer_is_refused(
    make_model: MakeModel, root: Path, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    refused("has no tokenizer.json", folder, root)


def test_a_model_of_another_task_is_refused(
    make_model: MakeModel, root: Path, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "m", task="captioning")
    error = refused("is for captioning, not for grounding", folder, root)
    assert "grounding or pretrain" in str(error.try_)
    tuned = make_model(tmp_path / "g", task="grounding")
    with pytest.raises(CheckpointError, match="is for grounding, not for pretrain"):
        find_checkpoint(tuned, "pretrain", {}, root)


def test_without_any_model_the_user_is_told_how_to_get_one(root: Path) -> None:
    error = refused("no model for grounding", None, root)
    assert "xvlm demo" in str(error.try_)
    refused("no built-in model", "builtin", root)


def test_finding_a_model_imports_no_torch(
    make_model: MakeModel, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = make_model(tmp_path / "m")
    code = (
        "import sys; from xvlm_core.inference.checkpoints import find_checkpoint as f; "
        f"f({str(folder)!r}, 'grounding', {{}}); assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=request.config.rootpath)
