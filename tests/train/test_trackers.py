"""What TensorBoard, wandb and trackio got, read back from where they keep it."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import json
import socket
import sqlite3
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.train.toy import toy_recipe
from xvlm_core.errors import MissingToolError
from xvlm_core.train import runs, trackers
from xvlm_core.train.runs import RunInfo
from xvlm_core.train.telemetry import Outlook, Sink
from xvlm_core.train.trackers import TrackerWarning, flatten, open_trackers

RECIPE = toy_recipe()
OUTLOOK = Outlook(1, None, 0.1, None)


def train_line(step: int, loss: float) -> dict[str, Any]:
    return {
        "kind": "train",
        "step": step,
        "contrastive": loss,
        "lr": 1e-4,
        "pictures_per_s": 12.5,
        "ranks": [
            {"rank": 0, "pictures_per_s": 6.5, "data_wait": 0.25},
            {"rank": 1, "pictures_per_s": 6.0, "data_wait": 0.5},
        ],
        "counts": {},
        "dropped": {"too dark": 2},
    }


def eval_line(step: int, value: float) -> dict[str, Any]:
    score = {"value": value, "split": "val", "meaning": "share of records", "n": 12}
    scores = {"accuracy": score, "nothing": {**score, "value": None}}
    return {"kind": "eval", "step": step, "scores": scores, "dropped": {}}


def sessions(run: RunInfo, open_one: Callable[[], Sink]) -> None:
    """A session that is killed after step 30 with a checkpoint of step 20, and its end."""
    for steps in ((10, 20, 30), (30, 40)):
        sink = open_one()
        for step in steps:
            sink.line(train_line(step, step / 4), OUTLOOK)
        sink.line(eval_line(steps[-1], steps[-1] / 100), OUTLOOK)
        sink.note("a note")
        sink.close()


@pytest.fixture
def run(tmp_path: Path) -> RunInfo:
    return runs.create(tmp_path / "run", recipe=RECIPE, recipe_name="toy", command="xvlm toy")


def open_only(name: str, run: RunInfo) -> Sink:
    (sink,) = open_trackers([name], run, RECIPE)
    return sink


def test_the_numbers_of_a_line_get_one_name_each() -> None:
    assert flatten(train_line(10, 2.5)) == {
        "contrastive": 2.5,
        "lr": 1e-4,
        "pictures_per_s": 12.5,
        "ranks/0/pictures_per_s": 6.5,
        "ranks/0/data_wait": 0.25,
        "ranks/1/pictures_per_s": 6.0,
        "ranks/1/data_wait": 0.5,
        "dropped/too dark": 2,
    }
    assert flatten(eval_line(10, 0.5)) == {"scores/accuracy": 0.5}


def test_tensorboard(run: RunInfo) -> None:
    pytest.importorskip("tensorboard")
    name = "tensorboard.backend.event_processing.event_accumulator"
    accumulator = pytest.importorskip(name).EventAccumulator

    sessions(run, lambda: open_only("tensorboard", run))
    read = accumulator(str(run.folder / "tensorboard"))
    read.Reload()

    def curve(name: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in read.Scalars(name)]

    # the step that was made again is there once
    assert curve("contrastive") == [(10, 2.5), (20, 5.0), (30, 7.5), (40, 10.0)]
    assert [step for step, _ in curve("ranks/1/pictures_per_s")] == [10, 20, 30, 40]
    ((step, value),) = curve("scores/accuracy")
    assert (step, value) == pytest.approx((40, 0.4))
    assert "recipe/text_summary" in read.Tags()["tensors"]


def history(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a ``.wandb`` file: records of LevelDB's log format, each a protocol buffer."""
    messages = importlib.import_module("wandb.proto.wandb_internal_pb2")
    data, record, position = path.read_bytes(), b"", 7  # behind the file's own header
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            message = messages.Record.FromString(record)
            record = b""
            if message.WhichOneof("record_type") == "history":
                items = message.history.item
                yield {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}


def without_underscore(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("_")}


@pytest.mark.slow
def test_wandb_without_login_or_network(
    run: RunInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    modes: Iterator[str | None] = iter(["offline", None])

    def open_one() -> Sink:
        wandb.teardown()  # it reads the environment once
        mode = next(modes)
        if mode is not None:
            monkeypatch.setenv("WANDB_MODE", mode)
            return open_only("wandb", run)
        monkeypatch.delenv("WANDB_MODE")
        with pytest.warns(TrackerWarning, match="no login on this machine"):
            return open_only("wandb", run)

    with contextlib.ExitStack() as end:
        end.callback(wandb.teardown)
        sessions(run, open_one)
    files = sorted((run.folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    known = json.loads((run.folder / "trackers.json").read_text())["id"]
    assert {path.name for path in files} == {f"run-{known}.wandb"}  # one run
    rows = [without_underscore(row) for path in files for row in history(path)]
    assert [row["step"] for row in rows] == [10, 20, 30, 30, 30, 40, 40]
    assert rows[1] == {**flatten(train_line(20, 5.0)), "step": 20}
    assert rows[-1] == {"scores/accuracy": 0.4, "step": 40}


def test_trackio_on_this_machine(
    run: RunInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    trackio = pytest.importorskip("trackio")

    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("it tries the network")

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("trackio") and hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr("webbrowser.open", no_network)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrackerWarning)
        sessions(run, lambda: open_only("trackio", run))
    trackio._cleanup_current_run()  # what it does at the end of the process
    assert capsys.readouterr().out == ""
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "xvlm.db")) as database:
        query = "select run_name, step, metrics from metrics order by id"
        rows = database.execute(query).fetchall()
    assert len({name for name, _, _ in rows}) == 1
    assert rows[0][0].startswith("run-")
    assert [step for _, step, _ in rows] == [10, 20, 30, 30, 30, 40, 40]
    assert json.loads(rows[1][2]) == flatten(train_line(20, 5.0))


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_package_that_is_missing(
    name: str, run: RunInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(module: str, *rest: Any, **more: Any) -> Any:
        if module.partition(".")[0] == name:
            raise ImportError(f"No module named {module!r}")
        return real(module, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    gone = [n for n in sys.modules if n.partition(".")[0] == name]
    for module in [*gone, *(n for n in sys.modules if n.startswith("torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    if name != "tensorboard":  # found by the import system, not by __import__
        monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(MissingToolError) as caught:
        open_trackers([name], run, RECIPE)
    assert name in caught.value.what
    assert caught.value.try_ == "pip install 'xvlm[track]'"
    assert caught.value.exit_code == 7


class Fake:
    """A tracker that works for a while."""

    def __init__(self, good: int, closing: Callable[[], None] = lambda: None) -> None:
        self.good, self.closing, self.got = good, closing, 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.got += 1
        if self.got > self.good:
            raise OSError("No space left on device")

    def close(self) -> None:
        self.closing()


def test_a_tracker_that_fails_is_told_of_once_and_dropped() -> None:
    fake = Fake(good=1)
    sink = trackers._TrackerSink("some", fake)
    sink.line(train_line(1, 1.0), OUTLOOK)
    with pytest.warns(TrackerWarning, match="some failed at step 2, .*: No space left on device"):
        sink.line(train_line(2, 1.0), OUTLOOK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sink.line(train_line(3, 1.0), OUTLOOK)
    assert fake.got == 2
    sink.close()


def test_a_tracker_that_fails_or_hangs_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise ValueError("refused")

    with pytest.warns(TrackerWarning, match="some failed at the end: refused"):
        trackers._TrackerSink("some", Fake(1, fails)).close()
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.1)
    stdout, begin = sys.stdout, time.monotonic()
    with pytest.warns(TrackerWarning, match="did not send its last lines"):
        trackers._TrackerSink("some", Fake(1, lambda: time.sleep(3))).close()
    assert time.monotonic() - begin < 2
    assert sys.stdout is stdout


def test_a_tracker_that_cannot_be_opened_is_told_of(
    run: RunInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> None:
        raise ConnectionError("no answer")

    monkeypatch.setattr(trackers, "_Trackio", refuses)
    monkeypatch.setattr(trackers, "_load", lambda name, module: None)
    with pytest.warns(TrackerWarning, match="trackio could not be opened.*: no answer"):
        assert open_trackers(["trackio"], run, RECIPE) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_trackers(["trackio"], run, RECIPE) == []
