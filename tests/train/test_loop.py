from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.toy import ToyFeed, ToyTask, in_process, run_toy, toy_recipe
from xvlm_core.errors import CheckpointError, DataError, DivergedError, OutputError
from xvlm_core.train import checkpoint, runs
from xvlm_core.train.files import locked
from xvlm_core.train.parts import seed_of
from xvlm_core.train.telemetry import TIMES


def lines(folder: Path) -> list[dict[str, Any]]:
    """The log without times."""
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read]


def final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    files = [newest / "model.safetensors", newest / "optimizer.safetensors"]
    return {f"{path.name}:{k}": v for path in files for k, v in load_file(path).items()}


def same_run(one: Path, other: Path) -> None:
    a, b = final_tensors(one), final_tensors(other)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
    assert lines(one) == lines(other)
    assert json.loads((one / "best.json").read_bytes()) == json.loads(
        (other / "best.json").read_bytes()
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_at_any_step_and_resumed_the_run_is_the_same_bit_for_bit(
    tmp_path: Path, workers: int
) -> None:
    run_toy(tmp_path / "whole")
    recipe = toy_recipe(data={"workers": workers})
    for step in (2, 6, 13, 19):  # before the first checkpoint, between, after the last
        code = in_process(run_toy, tmp_path / "killed", ToyTask(kill_at=step), recipe)
        assert code == -signal.SIGKILL
    assert in_process(run_toy, tmp_path / "killed", ToyTask(), recipe) == 0
    same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_run_with_an_average_goes_on_from_its_live_weights(tmp_path: Path) -> None:
    recipe = toy_recipe(train={"ema": 0.9})
    run_toy(tmp_path / "whole", recipe=recipe)
    for step in (5, 14):
        run_toy(tmp_path / "cut", ToyTask(signal_at=(step, signal.SIGTERM)), recipe)
    run_toy(tmp_path / "cut", recipe=recipe)
    same_run(tmp_path / "whole", tmp_path / "cut")
    tensors = final_tensors(tmp_path / "cut")
    averaged = tensors["model.safetensors:head.weight"]
    live = tensors["optimizer.safetensors:live/head.weight"]
    assert not torch.equal(averaged, live), "what is saved as the model is the average"


def test_interrupted_and_resumed_the_run_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    run_toy(tmp_path / "whole")
    for step in (5, 6, 14):  # 6: a validation is due, and is made after resuming
        result = run_toy(tmp_path / "cut", ToyTask(signal_at=(step, signal.SIGTERM)))
        assert (result.step, result.interrupted_by) == (step, signal.SIGTERM)
        assert runs.read(tmp_path / "cut").status == "interrupted"
        newest = checkpoint.newest(tmp_path / "cut" / "checkpoints")
        assert newest is not None
        assert checkpoint.step_of(newest) == step
    result = run_toy(tmp_path / "cut", ToyTask(signal_in_validation=signal.SIGINT))
    assert (result.step, result.interrupted_by) == (18, signal.SIGINT)
    result = run_toy(tmp_path / "cut")
    assert (result.step, result.interrupted_by) == (20, None)
    assert runs.read(tmp_path / "cut").status == "finished"
    same_run(tmp_path / "whole", tmp_path / "cut")


def test_seed_and_dropout_matter_to_the_toy(tmp_path: Path) -> None:
    """Else bit equality would say nothing about random numbers."""
    run_toy(tmp_path / "a")
    run_toy(tmp_path / "b", recipe=toy_recipe(seed=1))
    a, b = final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b")
    assert not torch.equal(a["model.safetensors:first.weight"], b["model.safetensors:first.weight"])


def test_validating_more_often_does_not_change_the_weights(tmp_path: Path) -> None:
    run_toy(tmp_path / "a")
    run_toy(tmp_path / "b", recipe=toy_recipe(train={"evaluate_every": 1, "checkpoint_every": 20}))
    a, b = final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_a_second_signal_stops_at_once(tmp_path: Path, before: Any) -> None:
    class Twice(ToyTask):
        def losses(self, model: Any, batch: Any, moment: Any) -> Any:
            if moment.step == 3:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
                pytest.fail("went on after the second signal")
            return super().losses(model, batch, moment)

    outside = signal.signal(signal.SIGINT, before)  # a background job's is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            run_toy(tmp_path / "run", Twice())
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, outside)
    assert runs.read(tmp_path / "run").status == "interrupted"


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by one entry with each update of the parameters."""
    made: list[object] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: (made.append(self), step(self)))
    return made


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_not_finite_stops_before_the_update_and_names_step_records_and_checkpoint(
    tmp_path: Path, kind: str, updates: list[object]
) -> None:
    task = ToyTask(not_finite_at=11) if kind == "loss" else ToyTask(not_finite_gradient_at=11)
    with pytest.raises(DivergedError) as caught:
        run_toy(tmp_path / "run", task)
    error = caught.value
    text = "\n".join(error.lines())
    assert error.exit_code == 6
    assert "step 11" in text
    assert ("square" if kind == "loss" else "grad_norm") in error.what
    assert "11-0" in text
    assert error.try_
    assert "step-00000008 optim.lr=1.0e-02" in error.try_
    report = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert report["records"] == [f"11-{i}" for i in range(5)]
    assert runs.read(tmp_path / "run").status == "diverged"
    assert task.model is not None
    assert len(updates) == 10 + 3  # steps 3, 6 and 9 have two updates
    assert all(p.isfinite().all() for p in task.model.parameters())


def test_only_computed_losses_are_logged_and_each_is_a_mean_over_its_updates(
    tmp_path: Path,
) -> None:
    run_toy(tmp_path / "run", recipe=toy_recipe(train={"log_every": 1}))
    train = [line for line in lines(tmp_path / "run") if line["kind"] == "train"]
    assert [line["step"] for line in train] == list(range(1, 21))
    assert [line["step"] for line in train if "second" in line] == [3, 6, 9, 12, 15, 18]
    assert [line["step"] for line in train if "late" in line] == list(range(11, 21))
    assert train[2]["counts"] == {"seen": 10}
    assert train[0]["counts"] == {"seen": 5}
    assert train[-1]["dropped"] == {"too dark": 4}  # steps 4, 8, 16 and 20
    assert train[0]["lr"] > 0
    assert train[-1]["lr"] == pytest.approx(0.02 / 18)  # warm-up 2; 0 after step 20


def test_best_checkpoint_is_chosen_on_validation_and_kept(tmp_path: Path) -> None:
    task = ToyTask()
    values = iter([-3.0, -1.0, -2.0, -2.5])
    task.score = lambda predictions: {  # type: ignore[method-assign]
        "closeness": type(scores["closeness"])(next(values), "val", "", len(predictions))
    }
    scores = ToyTask().score([{"id": "a", "error": 1.0}])
    result = run_toy(tmp_path / "run", task)
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert best == {"step": 12, "score": "closeness", "value": -1.0}
    assert checkpoint.list_steps(tmp_path / "run" / "checkpoints") == [12, 16, 20]
    folder = runs.read(tmp_path / "run").checkpoint()
    assert folder is not None
    assert folder.name == "step-00000012"
    assert result.scores["closeness"].value == -2.5


def test_without_validation_the_newest_checkpoint_counts(tmp_path: Path) -> None:
    result = run_toy(tmp_path / "run", ToyTask(with_validation=False))
    assert result.scores == {}
    run = runs.read(tmp_path / "run")
    assert run.best() is None
    folder = run.checkpoint()
    assert folder is not None
    assert folder.name == "step-00000020"


def test_a_finished_run_resumed_changes_nothing_and_says_its_scores(tmp_path: Path) -> None:
    first = run_toy(tmp_path / "run")
    before = lines(tmp_path / "run")
    again = run_toy(tmp_path / "run")
    assert (again.step, again.interrupted_by, again.scores) == (20, None, first.scores)
    assert lines(tmp_path / "run") == before


def test_resume_passes_over_a_damaged_checkpoint_and_replaces_it(tmp_path: Path) -> None:
    recipe = toy_recipe(train={"keep_last": 3})
    run_toy(tmp_path / "whole", recipe=recipe)
    run_toy(tmp_path / "run", ToyTask(signal_at=(13, signal.SIGTERM)), recipe)
    for step in (12, 13):
        weights = tmp_path / "run" / "checkpoints" / f"step-000000{step}" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.warns(checkpoint.CheckpointWarning) as caught:
        run_toy(tmp_path / "run", recipe=recipe)
    texts = [str(warning.message) for warning in caught]
    assert any("step-00000013" in text and "passed over" in text for text in texts)
    assert any("step-00000012" in text and "replaced" in text for text in texts)
    same_run(tmp_path / "whole", tmp_path / "run")


def test_resume_with_damaged_checkpoints_only_is_refused(tmp_path: Path) -> None:
    run_toy(tmp_path / "run", ToyTask(signal_at=(3, signal.SIGTERM)))
    (tmp_path / "run" / "checkpoints" / "step-00000003" / "MANIFEST.json").write_text("{")
    with (
        pytest.warns(checkpoint.CheckpointWarning),
        pytest.raises(CheckpointError, match="all its checkpoints are damaged"),
    ):
        run_toy(tmp_path / "run")


def test_resume_with_another_model_is_refused(tmp_path: Path) -> None:
    run_toy(tmp_path / "run", ToyTask(signal_at=(3, signal.SIGTERM)))
    task = ToyTask()
    task.build_model = lambda **_: torch.nn.Linear(4, 8)  # type: ignore[method-assign]
    task.load_weights = lambda model, folder: None  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="another model"):
        run_toy(tmp_path / "run", task)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_error_arrives_whole_from_a_loader_process(tmp_path: Path, workers: int) -> None:
    task = ToyTask(toy_feed=ToyFeed(broken_at=3))
    with pytest.raises(DataError) as caught:
        run_toy(tmp_path / "run", task, toy_recipe(data={"workers": workers}))
    assert caught.value.lines() == [
        "picture 7.jpg cannot be read",
        "Where: record 7",
        "Try: xvlm validate",
    ]


def test_a_killed_loader_process_is_a_data_error(tmp_path: Path) -> None:
    task = ToyTask(toy_feed=ToyFeed(worker_dies_at=3))
    with pytest.raises(DataError, match="loader process died"):
        run_toy(tmp_path / "run", task, toy_recipe(data={"workers": 1}))


def test_max_seconds_ends_the_run_and_lowers_the_rate_over_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.05
        return now[0]

    monkeypatch.setattr("xvlm_core.train.loop.time.monotonic", clock)
    recipe = toy_recipe(schedule={"max_steps": None, "max_seconds": 10.0}, train={"log_every": 1})
    result = run_toy(tmp_path / "run", recipe=recipe)
    assert result.interrupted_by is None
    rates = [line["lr"] for line in lines(tmp_path / "run") if line["kind"] == "train"]
    assert 10 < result.step == len(rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0 < rates[-1] < 0.1 * max(rates)
    assert (
        json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-2])["seconds"] >= 10
    )


def test_two_processes_cannot_train_one_run(tmp_path: Path) -> None:
    run = runs.create(tmp_path / "run", recipe=toy_recipe(), recipe_name="toy", command="")
    (run.folder / "old").touch()
    with locked(run.folder):
        assert in_process(_locked_out, run) == 0
    assert (run.folder / "old").exists()


def _locked_out(run: runs.RunInfo) -> None:
    words = "trained by another process"
    with pytest.raises(OutputError, match=words), locked(run.folder):
        pass
    with pytest.raises(OutputError, match=words):  # nor is it deleted under the other's feet
        runs.create(run.folder, recipe=toy_recipe(), recipe_name="toy", command="", overwrite=True)


def test_bf16_and_official_compat_train(tmp_path: Path) -> None:
    recipe = toy_recipe(
        compat="official",
        train={"precision": "bf16", "log_every": 1},
        schedule={"max_steps": 10, "warmup": 2},
    )
    run_toy(tmp_path / "run", recipe=recipe)
    train = [line for line in lines(tmp_path / "run") if line["kind"] == "train"]
    assert train[0]["lr"] == 0.0
    assert train[2]["lr"] == pytest.approx(0.02)
    assert train[-1]["square"] < train[0]["square"]


def test_an_update_without_any_loss_is_counted_and_not_made(
    tmp_path: Path, updates: list[object]
) -> None:
    class Empty(ToyTask):
        def sizes(self, batch: Any, moment: Any) -> Any:
            return {} if moment.step == 2 else super().sizes(batch, moment)

    run_toy(tmp_path / "run", Empty(), toy_recipe(schedule={"max_steps": 2}))
    assert len(updates) == 1
    assert lines(tmp_path / "run")[0]["counts"] == {"seen": 5, "empty_updates": 1}


def test_each_update_has_draws_of_its_own() -> None:
    places = [(seed, step, number) for seed in (0, 1) for step in (1, 2) for number in (0, 1)]
    seeds = [seed_of(*place, part) for place in places for part in (0, 1)]
    assert len(set(seeds)) == len(seeds)
    assert [seed_of(*place, part) for place in places for part in (0, 1)] == seeds


def test_a_parameter_without_a_loss_is_not_moved_by_its_momentum(tmp_path: Path) -> None:
    class Once(ToyTask):
        def sizes(self, batch: Any, moment: Any) -> Any:
            return {**super().sizes(batch, moment), **({"late": 1.0} if moment.step == 1 else {})}

        def losses(self, model: Any, batch: Any, moment: Any) -> Any:
            losses = super().losses(model, batch, moment)
            if moment.step == 1:
                return type(losses)({**losses.parts, "late": (model.late - 2) ** 2}, {})
            if moment.step == 2:
                self.after_one = model.late.item()
            return losses

    task = Once()
    task.signal_at = (5, signal.SIGTERM)  # in the first half there is no such loss
    run_toy(tmp_path / "run", task)
    assert task.model is not None
    assert task.after_one != 1.0
    assert task.model.late.item() == task.after_one
