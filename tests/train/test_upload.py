"""Copies of a run elsewhere: whole checkpoints, the same as here, and never in the way."""

from __future__ import annotations

import builtins
import importlib
import json
import os
import shutil
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from tests.train.toy import toy_recipe
from xvlm_core.errors import ConfigError, MissingToolError
from xvlm_core.train import checkpoint, runs
from xvlm_core.train.runs import Best, RunInfo
from xvlm_core.train.upload import Uploader, UploadSummary, UploadWarning

WAITS = (0.01, 0.01, 0.01)
PUT = "put_file"


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where copies of runs are kept."""
    if request.param == "file":
        return f"file://{tmp_path}/elsewhere/runs"
    return f"memory://{uuid.uuid4().hex}/runs"


@pytest.fixture
def run(tmp_path: Path) -> RunInfo:
    made = runs.create(tmp_path / "run", recipe=toy_recipe(), recipe_name="toy", command="xvlm toy")
    made.metrics.write_text('{"kind": "train", "step": 1}\n')
    return made


def write(run: RunInfo, step: int, *, keep_last: int = 2, keep: tuple[int, ...] = ()) -> Path:
    def files(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(os.urandom(1000 + step))
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "vocab.txt").write_text(f"of step {step}")

    return checkpoint.write(run.checkpoints, step, files, keep_last=keep_last, keep=keep)


def fetch(url: str, folder: Path) -> RunInfo:
    """The copy of a run, back on this machine."""
    system, path = fsspec.core.url_to_fs(url)
    root = str(system._strip_protocol(path)).rstrip("/")
    system.invalidate_cache()
    for name in system.find(root):
        target = folder / str(name)[len(root) + 1 :]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(system.cat_file(name))
    return runs.read(folder)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def upload(url: str, run: RunInfo, step: int, timeout: float = 60) -> UploadSummary:
    """A session that writes one checkpoint."""
    uploader = Uploader(url, run.folder, waits=WAITS)
    uploader.checkpoint(write(run, step))
    return uploader.close(timeout)


def test_a_copy_is_a_run_with_the_same_checkpoints(
    place: str, run: RunInfo, tmp_path: Path
) -> None:
    uploader = Uploader(place, run.folder, waits=WAITS)
    for step in (10, 20, 30):
        uploader.checkpoint(write(run, step, keep=(10,)))
        run.write_best(Best(10, "accuracy", 0.5))
    with run.metrics.open("a") as stream:
        stream.write('{"kind": "train", "step": 30}\n{"torn')
    run.with_status("finished")
    summary = uploader.close(30)
    assert summary.url == f"{place}/run"
    assert (summary.waiting, summary.failed) == ((), ())
    copy = fetch(summary.url, tmp_path / "back")
    assert copy.status == "finished"
    assert checkpoint.list_steps(copy.checkpoints) == [10, 20, 30]
    assert contents(copy.checkpoints) == contents(run.checkpoints)
    assert copy.checkpoint() == copy.checkpoints / "step-00000010"  # as best.json says
    assert copy.metrics.read_text().count("\n") == 2
    assert "torn" not in copy.metrics.read_text()
    assert not (run.folder / ".uploading").exists()


def test_what_is_deleted_here_is_deleted_there(place: str, run: RunInfo, tmp_path: Path) -> None:
    for session, steps in enumerate([(1, 2), (3, 4)]):
        uploader = Uploader(place, run.folder, waits=WAITS)
        for step in steps:
            uploader.checkpoint(write(run, step, keep_last=1))
        summary = uploader.close(30)
        copy = fetch(summary.url, tmp_path / f"back-{session}")
        assert checkpoint.list_steps(copy.checkpoints) == [steps[-1]]
        checkpoint.verify(copy.checkpoints / checkpoint.folder_name(steps[-1]))


def test_checkpoints_lost_here_stay_there(place: str, run: RunInfo, tmp_path: Path) -> None:
    upload(place, run, 50)
    shutil.rmtree(run.checkpoints)
    copy = fetch(upload(place, run, 10).url, tmp_path / "back")
    assert checkpoint.list_steps(copy.checkpoints) == [10, 50]


def test_a_checkpoint_made_again_replaces_the_one_there(
    place: str, run: RunInfo, tmp_path: Path
) -> None:
    for _ in range(2):
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        url = upload(place, run, 10).url
    copy = fetch(url, tmp_path / "back")
    assert contents(copy.checkpoints) == contents(run.checkpoints)


def test_another_run_of_the_same_name_is_left_alone(
    place: str, run: RunInfo, tmp_path: Path
) -> None:
    before = fetch(upload(place, run, 10).url, tmp_path / "before")
    other = runs.create(tmp_path / "b/run", recipe=toy_recipe(), recipe_name="toy", command="x")
    with pytest.warns(UploadWarning, match="another run of this name"):
        summary = upload(place, other, 20)
    assert summary.waiting == (20,)
    assert "another run of this name" in summary.failed[0]
    after = fetch(summary.url, tmp_path / "after")
    assert contents(after.folder) == contents(before.folder)


class Gate:
    """A place whose files arrive only when the gate is open, in an order that is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_open, self.entered = threading.Event(), threading.Event()
        self.order: list[str] = []
        put, pipe = LocalFileSystem.put_file, LocalFileSystem.pipe_file

        def slow(system: Any, source: str, path: str, *rest: Any, **more: Any) -> Any:
            self.entered.set()
            assert self.is_open.wait(30)
            self.order.append(path)
            return put(system, source, path, *rest, **more)

        def piped(system: Any, path: str, *rest: Any, **more: Any) -> Any:
            self.order.append(path)
            return pipe(system, path, *rest, **more)

        monkeypatch.setattr(LocalFileSystem, PUT, slow)
        monkeypatch.setattr(LocalFileSystem, "pipe_file", piped)

    def steps(self) -> list[int]:
        """Steps in the order in which their manifests came."""
        return [int(p.split("step-")[1][:8]) for p in self.order if p.endswith("MANIFEST.json")]


def test_where_copying_is_slower_than_training_the_newest_goes_first(
    run: RunInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    uploader = Uploader(f"file://{tmp_path}/there", run.folder, waits=WAITS)
    uploader.checkpoint(write(run, 1, keep_last=2))
    assert gate.entered.wait(30)
    for step in (2, 3, 4, 5):  # 1 is deleted here while it is copied; 2 and 3 before
        uploader.checkpoint(write(run, step, keep_last=2))
    assert checkpoint.list_steps(run.checkpoints) == [4, 5]
    gate.is_open.set()
    summary = uploader.close(30)
    assert gate.steps() == [1, 5, 4]
    assert summary == UploadSummary(summary.url, copied=(1, 4, 5), skipped=(2, 3))
    assert "2 were replaced by newer ones" in summary.lines()[0]
    copy = fetch(summary.url, tmp_path / "back")
    assert contents(copy.checkpoints) == contents(run.checkpoints)
    first = [p for p in gate.order if "step-00000005" in p]
    assert first[-1].endswith("MANIFEST.json")
    assert len(first) == 3


def test_a_checkpoint_deleted_here_without_hard_links_is_no_failure(
    run: RunInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any, **__: Any) -> None:
        raise PermissionError("no links on this disk")

    monkeypatch.setattr(os, "link", no_links)
    gate = Gate(monkeypatch)
    uploader = Uploader(f"file://{tmp_path}/there", run.folder, waits=WAITS)
    uploader.checkpoint(write(run, 1, keep_last=1))
    assert gate.entered.wait(30)
    uploader.checkpoint(write(run, 2, keep_last=1))
    gate.is_open.set()
    summary = uploader.close(30)
    assert summary == UploadSummary(summary.url, copied=(2,), skipped=(1,))
    copy = fetch(summary.url, tmp_path / "back")
    assert contents(copy.checkpoints) == contents(run.checkpoints)


class Broken:
    """A place that refuses the first puts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refusals: int) -> None:
        self.calls, self.refusals = 0, refusals
        real: Callable[..., Any] = MemoryFileSystem.put_file

        def put(*arguments: Any, **more: Any) -> Any:
            self.calls += 1
            if self.calls <= self.refusals:
                raise OSError("connection reset")
            return real(*arguments, **more)

        monkeypatch.setattr(MemoryFileSystem, PUT, put)


def test_a_place_that_fails_is_tried_again(
    run: RunInfo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = Broken(monkeypatch, refusals=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = upload(f"memory://{uuid.uuid4().hex}", run, 1)
    assert (summary.copied, summary.failed) == ((1,), ())
    assert broken.calls == 3 + 2
    copy = fetch(summary.url, tmp_path / "back")
    assert contents(copy.checkpoints) == contents(run.checkpoints)


def test_a_place_that_goes_on_failing_is_told_once_and_counted(
    run: RunInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    Broken(monkeypatch, refusals=10_000)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        uploader = Uploader(f"memory://{uuid.uuid4().hex}", run.folder, waits=WAITS)
        for step in (1, 2):
            uploader.checkpoint(write(run, step))
        summary = uploader.close(30)
    assert [str(w.message) for w in told if w.category is UploadWarning] == [
        f"upload: {summary.url} cannot be written: connection reset"
    ]
    assert (summary.copied, summary.waiting) == ((), (1, 2))
    assert summary.failed == (f"{summary.url} cannot be written: connection reset",)
    assert "not copied: step 1, step 2" in summary.lines()[0]


def test_warnings_that_are_errors_do_not_stop_it(
    run: RunInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Broken(monkeypatch, refusals=4)  # one whole attempt
    warnings.simplefilter("error", UploadWarning)
    uploader = Uploader(f"memory://{uuid.uuid4().hex}", run.folder, waits=WAITS)
    uploader.checkpoint(write(run, 1))
    while broken.calls < 4:
        uploader._hurry.wait(0.01)
    uploader.checkpoint(write(run, 2))
    summary = uploader.close(30)
    assert (summary.copied, summary.failed) == ((1, 2), ())


def test_a_damaged_checkpoint_is_not_copied(place: str, run: RunInfo, tmp_path: Path) -> None:
    (write(run, 1) / "model.safetensors").write_bytes(b"edited")
    with pytest.warns(UploadWarning, match=r"step 1 is not copied: .* is damaged"):
        summary = upload(place, run, 2)
    assert summary.copied == (2,)
    assert len(summary.failed) == 1
    assert checkpoint.list_steps(fetch(summary.url, tmp_path / "back").checkpoints) == [2]


def test_the_end_does_not_wait_for_ever(
    run: RunInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    uploader = Uploader(f"file://{tmp_path}/there", run.folder, waits=WAITS)
    uploader.checkpoint(write(run, 1))
    summary = uploader.close(0.3)
    assert (summary.copied, summary.waiting) == ((), (1,))
    assert summary.failed == ("copying did not end within 0 s",)
    gate.is_open.set()
    uploader._thread.join(30)
    assert not list((tmp_path / "there").rglob("MANIFEST.json"))  # half of it: not whole


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("nowhere://bucket/runs", "no place is of the kind nowhere"),
        ("https://example.org/runs", "nothing can be copied to https"),
    ],
)
def test_an_address_that_cannot_be_written_to(run: RunInfo, url: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        Uploader(url, run.folder)
    assert caught.value.where == "train.upload"


def test_a_package_that_is_missing(run: RunInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_s3fs(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("s3fs"):
            raise ImportError("no s3fs")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_s3fs)
    known = importlib.import_module("fsspec.registry")._registry
    monkeypatch.delitem(known, "s3", raising=False)
    for name in [name for name in sys.modules if name.startswith("s3fs")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingToolError, match="copying to s3://") as caught:
        Uploader("s3://bucket/runs", run.folder)
    assert caught.value.try_ == "pip install 'xvlm[s3]'"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a server on this machine."""
    for package in ("flask", "flask_cors", "s3fs"):
        pytest.importorskip(package)
    server_module = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    boto3.client("s3").create_bucket(Bucket="runs")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield "s3://runs/a"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def test_a_bucket(bucket: str, run: RunInfo, tmp_path: Path) -> None:
    uploader = Uploader(bucket, run.folder, waits=WAITS)
    for step in (1, 2, 3):
        uploader.checkpoint(write(run, step))
    summary = uploader.close(60)
    assert summary.failed == ()
    copy = fetch(summary.url, tmp_path / "back")
    assert contents(copy.checkpoints) == contents(run.checkpoints)
    assert json.loads((copy.folder / "run.json").read_text())["command"] == "xvlm toy"


def test_a_bucket_that_is_not_there(bucket: str, run: RunInfo) -> None:
    with pytest.warns(UploadWarning, match="cannot be written"):
        summary = upload("s3://elsewhere/a", run, 1)
    assert (summary.copied, summary.waiting) == ((), (1,))
