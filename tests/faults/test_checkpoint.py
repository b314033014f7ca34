"""What is left on the disk when a checkpoint is stopped at any single operation."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from xvlm_core.errors import CheckpointError, OutputError
from xvlm_core.train import checkpoint
from xvlm_core.train.files import Files

OPERATIONS = ("make_folder", "write", "sync", "rename", "remove_file", "remove_folder")


class Watched(Files):
    """The real disk; calls ``before`` with the number of each operation (from 0)."""

    def __init__(self, before: Callable[[int, str, Path], None] = lambda *_: None) -> None:
        self.log: list[tuple[str, str]] = []
        self.inside = False
        self.before = before

    def __getattribute__(self, name: str) -> object:
        method = super().__getattribute__(name)
        if name not in OPERATIONS:
            return method

        def watched(path: Path, *more: object) -> None:
            self.before(len(self.log), name, path)
            self.log.append((name, path.name))
            self.inside = True
            method(path, *more)  # type: ignore[operator]
            self.inside = False

        return watched


def writer(step: int, files: Files) -> Callable[[Path], None]:
    def write_files(folder: Path) -> None:
        files.write(folder / "model", f"weights of step {step}".encode())
        files.make_folder(folder / "more")
        files.write(folder / "more" / "state", str(step).encode())

    return write_files


def save(folder: Path, step: int, files: Files, *, keep_last: int = 1) -> Path:
    return checkpoint.write(
        folder, step, writer(step, files), keep_last=keep_last, keep=(1,), files=files
    )


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """Steps 1 (to be kept), 2 (to be deleted), a damaged 3, and what a killed writer left."""
    folder = tmp_path / "before"
    for step in (1, 2, 3):
        save(folder, step, Files(), keep_last=3)
    (folder / "step-00000003" / "model").write_text("edited")
    (folder / ".writing-step-00000002-1").mkdir()
    (folder / ".writing-step-00000002-1" / "model").write_text("half")
    (folder / ".discarded-step-00000000").mkdir()
    return folder


def loadable(folder: Path) -> int:
    """Step of the newest checkpoint; its contents are what was written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", checkpoint.CheckpointWarning)
        newest = checkpoint.newest(folder)
    assert newest is not None, "no checkpoint is left"
    step = checkpoint.step_of(newest)
    assert (newest / "model").read_text() == f"weights of step {step}"
    assert (newest / "more" / "state").read_text() == str(step)
    return step


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def in_child(action: Callable[[], None]) -> int:
    """Exit code of a forked process that does nothing but this."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            warnings.simplefilter("ignore")
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_operations(before: Path, scratch: Path) -> int:
    shutil.copytree(before, scratch)
    files = Watched()
    with pytest.warns(checkpoint.CheckpointWarning, match="replaced"):
        save(scratch, 3, files)
    shutil.rmtree(scratch)
    assert {name for name, _ in files.log} == set(OPERATIONS), "each kind of operation occurs"
    return len(files.log)


def test_the_order_is_data_manifest_rename_and_only_then_deletion(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, 2, Files())
    files = Watched()
    save(folder, 3, files)
    temporary, manifest = f".writing-step-00000003-{os.getpid()}", "MANIFEST.json"
    assert files.log == [
        ("make_folder", temporary),
        ("write", "model"),
        ("make_folder", "more"),
        ("write", "state"),
        ("sync", "state"),
        ("sync", "model"),
        ("sync", "more"),
        ("write", manifest),
        ("sync", manifest),
        ("sync", temporary),
        ("rename", temporary),
        ("sync", "checkpoints"),
        ("rename", "step-00000002"),
        ("remove_file", "state"),
        ("remove_file", "MANIFEST.json"),
        ("remove_file", "model"),
        ("remove_folder", "more"),
        ("remove_folder", ".discarded-step-00000002"),
    ]


def test_no_operation_goes_past_the_seam(before: Path) -> None:
    """Python's own audit events see every change; each must come from a counted operation."""

    def action() -> None:
        files = Watched()
        past: list[tuple[str, object]] = []
        changing = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link"}
        seen = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            change = event in changing
            if event == "open":
                flags = arguments[2]
                change = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
            if change and str(before) in str(arguments[0]):
                seen += 1
                if not files.inside:
                    past.append((event, arguments[0]))

        sys.addaudithook(hook)
        save(before, 3, files)
        assert not past, past
        assert seen == sum(name != "sync" for name, _ in files.log)

    assert in_child(action) == 0


def test_an_exit_at_any_operation_leaves_a_loadable_checkpoint(
    before: Path, tmp_path: Path
) -> None:
    total = count_operations(before, tmp_path / "scratch")
    steps = []
    for number in range(total):
        folder = tmp_path / f"exit-{number}"
        shutil.copytree(before, folder)

        def stop(at: int, name: str, path: Path, number: int = number) -> None:
            if at == number:
                if name == "write":  # half of it has reached the disk
                    path.write_bytes(b"half")
                os._exit(17)

        assert in_child(lambda f=folder, s=stop: save(f, 3, Watched(s))) == 17  # type: ignore[misc]
        steps.append(loadable(folder))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", checkpoint.CheckpointWarning)
            save(folder, 4, Files())
        assert loadable(folder) == 4
        assert hidden(folder) == []
        assert 1 in checkpoint.list_steps(folder), "the one to keep is kept"
        shutil.rmtree(folder)
    assert steps == sorted(steps), "once the new one is there it stays"
    assert set(steps) == {2, 3}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_an_error_at_any_operation_leaves_a_loadable_checkpoint_and_nothing_half_written(
    before: Path, tmp_path: Path, code: int
) -> None:
    total = count_operations(before, tmp_path / "scratch")
    refused = 0
    for number in range(total):
        folder = tmp_path / f"error-{number}"
        shutil.copytree(before, folder)

        def fail(at: int, name: str, path: Path, number: int = number) -> None:
            if at == number:
                raise OSError(code, os.strerror(code))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", checkpoint.CheckpointWarning)
            error = None
            try:
                save(folder, 3, Watched(fail))
            except OutputError as caught:
                error = caught
            if error is not None:
                refused += 1
                assert error.exit_code == 2
                assert error.what == (
                    f"checkpoint of step 3 cannot be written: {os.strerror(code)}"
                )
                assert error.try_
                assert "free some space" in error.try_ or code != errno.ENOSPC
            assert not [name for name in hidden(folder) if name.endswith(str(os.getpid()))]
        assert loadable(folder) in (2, 3)
        shutil.rmtree(folder)
    assert refused > total / 2


def test_a_full_disk_under_the_model_writer_is_one_clear_line(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, 1, Files())

    def full(target: Path) -> None:
        (target / "model").write_bytes(b"x")
        with open("/dev/full", "wb") as stream:
            stream.write(b"x")

    with pytest.raises(OutputError, match="No space left on device"):
        checkpoint.write(folder, 2, full, keep_last=1, keep=())
    assert loadable(folder) == 1
    assert hidden(folder) == []


def test_a_write_error_inside_safetensors_is_one_clear_line(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, 1, Files())

    def action() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        tensors = {"weight": np.zeros(100_000, np.float32)}
        with pytest.raises(OutputError, match="checkpoint of step 2 cannot be written"):
            checkpoint.write(
                folder,
                2,
                lambda target: save_file(tensors, target / "model.safetensors"),
                keep_last=1,
                keep=(),
            )

    assert in_child(action) == 0
    assert loadable(folder) == 1
    assert hidden(folder) == []


def test_an_exception_of_the_writer_passes_and_nothing_half_written_is_left(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, 1, Files())

    def interrupted(target: Path) -> None:
        (target / "model").write_bytes(b"x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(folder, 2, interrupted, keep_last=1, keep=())
    assert hidden(folder) == []
    assert checkpoint.list_steps(folder) == [1]


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, Path.unlink])
@pytest.mark.parametrize("name", ["model", "more/state", "MANIFEST.json"])
def test_a_damaged_file_is_named_and_the_checkpoint_passed_over(
    tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        save(folder, step, Files(), keep_last=2)
    checkpoint.verify(folder / "step-00000002")
    damage(folder / "step-00000002" / name)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.verify(folder / "step-00000002")
    assert name in caught.value.what
    assert caught.value.exit_code == 5
    with pytest.warns(checkpoint.CheckpointWarning, match="step-00000002"):
        assert checkpoint.newest(folder) == folder / "step-00000001"
    assert (folder / "step-00000002").is_dir(), "never deleted silently"


def test_a_good_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, 2, Files())
    with pytest.raises(CheckpointError, match="already"):
        save(folder, 2, Files())
    assert loadable(folder) == 2


def test_last_k_and_kept_steps_stay(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in range(1, 7):
        checkpoint.write(
            folder, step, writer(step, Files()), keep_last=2, keep={2} if step > 1 else ()
        )
    assert checkpoint.list_steps(folder) == [2, 5, 6]
    assert checkpoint.newest(tmp_path / "nowhere") is None
