from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Result, Run

REPOSITORY = Path(__file__).resolve().parents[2]
STORES_16M = ["coco", "vg", "sbu", "cc3m", "cc12m", "openimages", "objects365"]


def small(store: Path, *more: str) -> list[str]:
    """Overrides that make the world recipe a matter of seconds."""
    return [f"data.root={store.parent}", "data.validation_limit=2", *more]


def start(xvlm: Run, store: Path, *more: str) -> Result:
    return xvlm("pretrain", "--recipe", "world", *small(store), *more)


def test_without_data_it_names_every_missing_store_and_its_command(xvlm: Run) -> None:
    error = xvlm("pretrain", "--recipe", "16m").refusal(4)
    for name in STORES_16M:
        (line,) = [line for line in error.splitlines() if line.startswith(f"  {name}: ")]
        assert "xvlm prepare-data" in line
        assert f"data/{name}" in line
    assert "Try: xvlm prepare-data world --as pretrain/16m -o data" in error
    details = xvlm("pretrain", "--recipe", "16m", "--json").document()["error"]["details"]
    assert len(details) == len(STORES_16M)


@pytest.mark.skipif(sys.platform == "win32", reason="needs the time used by children")
def test_without_data_it_ends_before_torch_is_imported(tmp_path: Path) -> None:
    """In well under 2 s of processor time; torch alone takes about that."""
    import resource

    code = (
        "import sys\nfrom xvlm_cli.app import main\n"
        "code = main(['pretrain', '--recipe', '16m'])\n"
        "assert 'torch' not in sys.modules\nsys.exit(code)"
    )
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 4, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_only_the_stores_that_are_missing_are_named(xvlm: Run, tmp_path: Path) -> None:
    (tmp_path / "data" / "coco").mkdir(parents=True)
    (tmp_path / "data" / "coco" / "manifest.json").write_text("{}")
    error = xvlm("pretrain", "--recipe", "4m").refusal(4)
    assert "  vg: " in error
    assert "  coco: " not in error


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "which recipe"),
        (("--recipe", "15m"), 3, "near: pretrain/16m"),
        (("--recipe", "refcoco+"), 3, "task grounding"),
        (("--recipe", "16m", "optim.weigth_decay=1"), 3, "optim.weight_decay"),
        (("--recipe", "16m", "seed=abc"), 3, "whole number"),
        (("--recipe", "16m", "optim.lr=1e-4"), 3, "write 1.0e-4"),
        (("--recipe", "16m", "optim.lr"), 2, "key=value"),
        (("--recipe", "16m", "--device", "abacus"), 3, "one of auto, cpu, cuda"),
        (("--recipe", "16m", "--max-steps", "0"), 2, "--max-steps"),
        (("--recipe", "gone.yaml"), 3, "no recipe file"),
        (("--resume",), 5, "no unfinished run"),
        (("--resume", "gone"), 5, "gone"),
        (("--resume", "--overwrite"), 2, "leave one of them out"),
        (("--recipe", "16m", "--seed", "99999999999999999999"), 3, "seed: found"),
        (("--recipe", "16m", "--max-seconds", "inf"), 3, "schedule.max_seconds: found"),
        (("--recipe", "16m", "-o", "full"), 2, "not empty"),
        (("--recipe", "16m", "-o", "file"), 2, "is a file"),
    ],
)
def test_what_is_refused(
    words: tuple[str, ...], code: int, says: str, xvlm: Run, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    assert says in xvlm("pretrain", *words).refusal(code)
    assert not (tmp_path / "runs").exists()


def test_missing_first_weights_say_what_to_type_and_leave_no_run(
    xvlm: Run, world_store: Path, tmp_path: Path
) -> None:
    stores = ["data.images.stores=[world]", "data.regions.stores=[world]"]
    error = xvlm(
        "pretrain",
        "--recipe",
        "16m",
        "--max-steps",
        "1",
        f"data.root={world_store.parent}",
        *stores,
    ).refusal(3)
    assert "init.vision=/path/to/weights init.text=/path/to/weights" in error
    assert "init.vision=null init.text=null" in error
    assert "Try: xvlm pretrain --recipe pretrain/16m init.download=true" in error
    assert not (tmp_path / "runs").exists()


def test_the_16m_recipe_trains_a_tiny_model_on_a_stand_in(xvlm: Run, world_store: Path) -> None:
    data = Path("data")
    data.mkdir()
    for name in STORES_16M:
        (data / name).symlink_to(world_store)
    done = xvlm(
        "pretrain", "--recipe", "16m", "--max-steps", "1", "--json",
        "model.size=tiny", "init.vision=null", "init.text=null",
        "data.images.batch_size=4", "data.regions.max_images=4", "data.workers=0",
        "train.micro_batches=1",
    )  # fmt: skip
    result = done.document()["result"]
    assert result["step"] == 1
    assert Path(result["checkpoint"]).is_dir()
    assert Path(result["run"]).name.startswith("pretrain-16m-")


def test_a_run_says_where_it_is_and_what_it_reached(pretrained: Path, xvlm: Run) -> None:
    lines = (pretrained / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["kind"] for line in lines} == {"train", "eval"}
    record = json.loads((pretrained / "run.json").read_text())
    assert record["recipe"] == "pretrain/world"


def test_dry_run_shows_values_origins_and_sizes_and_writes_nothing(
    xvlm: Run, tmp_path: Path
) -> None:
    words = ("pretrain", "--recipe", "16m", "--seed", "3", "optim.lr=2.0e-4", "--dry-run")
    result = xvlm(*words, "--json").document()["result"]
    assert result["parameters"] == 215_637_241
    alone, paper = result["memory"]
    assert (alone["ranks"], paper["ranks"]) == (1, 24)
    assert alone["micro_batches"] == paper["micro_batches"] == 24
    engines = {(row["engine"], row["zero_stage"]): row for row in paper["engines"]}
    assert set(engines) == {("torch", None), *(("deepspeed", stage) for stage in range(4))}
    whole = 4 * 215_637_241
    assert engines["torch", None]["optimizer"] == 2 * whole
    assert engines["deepspeed", 1]["optimizer"] == 3 * whole // 24
    assert all(row["peak"] > row["weights"] + row["optimizer"] for row in engines.values())
    assert result["expected"]["gpus"] == 24
    assert result["expected"]["days"] == pytest.approx(3.5, abs=0.05)
    assert "3.5 days on 24 A100" in result["expected"]["text"]
    origins = {row["key"]: row["origin"] for row in result["values"]}
    assert origins["seed"] == "flag"
    assert origins["optim.lr"] == "override"
    assert origins["data.size"].startswith("recipe ")
    assert origins["compat"] == "schema"
    assert [store["name"] for store in result["stores"]] == STORES_16M
    assert not any(store["found"] for store in result["stores"])
    assert all(store["command"].startswith("xvlm prepare-data") for store in result["stores"])
    assert result["steps"] == 200_000
    assert list(tmp_path.iterdir()) == []


def test_dry_run_is_for_the_ranks_that_are_asked_for(xvlm: Run) -> None:
    words = (
        "pretrain", "-r", "4m", "--dry-run", "model.size=tiny", "text.tokenizer=world",
        "official_ranks=1",
    )  # fmt: skip
    done = xvlm(*words, "--gpus", "4")
    assert "8 parts, 2 on each of 4 ranks" in done.out
    assert "memory of one of 4 ranks, bf16" in done.out
    assert "deepspeed, ZeRO 3" in done.out
    assert "the longest there may be" in done.out
    result = xvlm(*words, "--gpus", "4", "--json").document()["result"]
    (only,) = result["memory"]
    assert (only["ranks"], only["micro_batches"], only["texts_of"]) == (4, 8, [])
    assert result["batch"]["micro_batches"] == 8
    assert result["expected"] is None, "the paper's hardware is that of its own runs"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--gpus", "3"), "3 processes cannot share the 8 micro-batches"),
        (("data.images.batch_size=100",), "8 equal parts: data.images.batch_size is 100"),
    ],
)
def test_dry_run_refuses_a_batch_that_cannot_be_shared(
    words: tuple[str, ...], says: str, xvlm: Run
) -> None:
    assert says in xvlm("pretrain", "-r", "4m", "--dry-run", *words).refusal(3)


def test_dry_run_counts_the_steps_of_the_data_found(xvlm: Run, world_store: Path) -> None:
    words = ("schedule.max_steps=null", "schedule.max_seconds=null", "schedule.epochs=3")
    result = xvlm(
        "pretrain", "-r", "world", "--dry-run", "--json", *small(world_store), *words,
        "data.regions.max_images=4",
    ).document()["result"]  # fmt: skip
    (store,) = result["stores"]
    assert (store["found"], store["records"], store["splits"]["train"]) == (True, 16, 12)
    assert result["steps"] == 3 * 12 // 4


def test_the_environment_sets_recipe_values(
    xvlm: Run, monkeypatch: pytest.MonkeyPatch, world_store: Path
) -> None:
    monkeypatch.setenv("XVLM_OPTIM__LR", "5.0e-4")
    words = ("pretrain", "-r", "world", "--dry-run", "--json", *small(world_store))
    rows = {row["key"]: row for row in xvlm(*words).document()["result"]["values"]}
    assert rows["optim.lr"]["value"] == 5.0e-4
    assert rows["optim.lr"]["origin"] == "environment XVLM_OPTIM__LR"


def test_an_old_run_is_replaced_only_when_asked(xvlm: Run, world_store: Path) -> None:
    assert start(xvlm, world_store, "--max-steps", "1", "-o", "run").code == 0
    before = json.loads(Path("run/run.json").read_text())["created"]
    assert "--overwrite" in start(xvlm, world_store, "--max-steps", "1", "-o", "run").refusal(2)
    assert json.loads(Path("run/run.json").read_text())["created"] == before
    done = start(xvlm, world_store, "--max-steps", "1", "-o", "run", "--overwrite")
    assert done.code == 0
    assert json.loads(Path("run/run.json").read_text())["created"] != before


def send_after_next_line(run: Path, number: int) -> threading.Thread:
    """A signal to this process as soon as the run has a new line of metrics."""
    metrics = run / "metrics.jsonl"
    size = metrics.stat().st_size if metrics.is_file() else 0

    def wait() -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if metrics.is_file() and metrics.stat().st_size > size:
                os.kill(os.getpid(), number)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM to catch")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_go_on(
    number: int, code: int, xvlm: Run, world_store: Path
) -> None:
    thread = send_after_next_line(Path("runs/r"), number)
    steps = ("schedule.max_steps=100000", "schedule.max_seconds=null", "train.log_every=1")
    done = start(xvlm, world_store, "-o", "runs/r", "--json", *steps)
    thread.join()
    assert done.code == code
    document = done.document()
    step = document["result"]["step"]
    assert 0 < step < 100_000
    assert document["error"]["code"] == "interrupted"
    assert document["error"]["try"] == "xvlm pretrain --resume -o runs/r"
    assert xvlm("validate", "runs/r").code == 0
    rows = xvlm("ls", "--json").document()["result"]["runs"]
    assert [row["status"] for row in rows] == ["interrupted"]

    # it goes on from there; the newest unfinished run is taken where none is named
    thread = send_after_next_line(Path("runs/r"), number)
    more = xvlm("pretrain", "--resume", "--json")
    thread.join()
    assert more.code == code
    assert more.document()["result"]["step"] > step


def test_a_resumed_run_keeps_its_recipe(xvlm: Run, pretrained: Path) -> None:
    for words in (("--max-steps", "9"), ("optim.lr=1.0e-4",), ("--seed", "1")):
        error = xvlm("pretrain", "--resume", pretrained, *words).refusal(2)
        assert "keeps its recipe" in error
    assert "16m" in xvlm("pretrain", "--resume", pretrained, "--recipe", "16m").refusal(2)


def test_a_finished_run_has_nothing_left_to_do(xvlm: Run, pretrained: Path) -> None:
    before = (pretrained / "metrics.jsonl").read_bytes()
    done = xvlm("pretrain", "--resume", pretrained, "train.device=cpu", "--json")
    assert done.document()["result"]["step"] == 2
    assert (pretrained / "metrics.jsonl").read_bytes() == before


def test_damaged_data_is_an_error_of_the_data_and_leaves_no_run(xvlm: Run, tmp_path: Path) -> None:
    (tmp_path / "data" / "world").mkdir(parents=True)
    (tmp_path / "data" / "world" / "manifest.json").write_text("{}")
    xvlm("pretrain", "--recipe", "world", "--max-steps", "1").refusal(4)
    assert not (tmp_path / "runs").exists()


def test_a_run_goes_on_with_its_recipe_and_its_data_or_not_at_all(
    xvlm: Run, world_store: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data" / "world"
    shutil.copytree(world_store, data)
    assert start(xvlm, data, "-o", "runs/r", "--max-steps", "1").code == 0
    assert xvlm("pretrain", "--resume", "runs/r").code == 0

    sizes = ("--train", "12", "--val", "4", "--test", "0", "--unseen", "0", "--workers", "1")
    other = ("prepare-data", "world", "-o", data, "--overwrite", *sizes)
    assert xvlm(*other, "--seed", "5").code == 0
    assert "other data" in xvlm("pretrain", "--resume", "runs/r").refusal(4)
    assert xvlm(*other).code == 0
    assert xvlm("pretrain", "--resume", "runs/r").code == 0, "equal data in another folder"

    recipe = tmp_path / "runs" / "r" / "recipe.yaml"
    before = recipe.read_text()
    recipe.write_text(before.replace("lr: 0.004", "lr: 0.001"))
    assert recipe.read_text() != before
    assert "was changed" in xvlm("pretrain", "--resume", "runs/r").refusal(5)
    recipe.unlink()
    assert "cannot be read" in xvlm("pretrain", "--resume", "runs/r").refusal(5)


def test_what_was_left_out_is_in_the_result(xvlm: Run, world_store: Path, tmp_path: Path) -> None:
    data = tmp_path / "data" / "world"
    shutil.copytree(world_store, data)
    pictures = sorted((data / "pictures").iterdir())
    for picture in pictures:
        if picture.name.startswith("val") or picture.name == "train-000001.png":
            picture.unlink()
    done = start(xvlm, data, "-o", "runs/r", "--max-steps", "2", "--json", "-q").document()
    assert done["result"]["dropped"]["missing"] > 0
    assert done["result"]["validation_dropped"]["missing"] > 0
    assert done["result"]["scores"] == {}
    assert any("of training" in warning for warning in done["warnings"])
    assert any("of validation" in warning for warning in done["warnings"])
    lines = [json.loads(line) for line in Path("runs/r/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["kind"] == "eval"
    assert lines[-1]["dropped"] == done["result"]["validation_dropped"]
    again = xvlm("pretrain", "--resume", "runs/r", "--json").document()
    assert again["result"]["validation_dropped"] == done["result"]["validation_dropped"]
