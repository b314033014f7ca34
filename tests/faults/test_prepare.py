"""``prepare-data`` that is killed at random moments and started again."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
OPTIONS = ("--train", "300", "--val", "40", "--test", "0", "--unseen", "0", "--size", "64")


def command(workers: int, *options: str) -> list[str]:
    words = ["prepare-data", "world", *OPTIONS, *options, "--shard-records", "20", "-o", "store"]
    return [sys.executable, "-m", "xvlm_cli.app", *words, "--workers", str(workers), "--json"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("options", [(), ("--pack",)], ids=["in place", "packed"])
def test_kill_9_at_random_moments_leaves_no_trace_in_the_store(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    subprocess.run(
        command(1, *options),
        cwd=tmp_path / "whole",
        env=environment,
        check=True,
        capture_output=True,
    )
    rng = random.Random(len(options))
    begun = tmp_path / "killed" / ".store.partial" / "parts" / "shards.jsonl"
    aside = tmp_path / "killed" / ".store.parts" / "shards.jsonl"
    lines_seen = []
    hidden = set()
    for attempt in range(40):
        process = subprocess.Popen(
            command(1 + attempt % 3, *options),
            cwd=tmp_path / "killed",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        done_before = begun.read_text().count("\n") if begun.is_file() else 0
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            # from the moment at which new work may be under way
            if begun.is_file() and begun.read_text().count("\n") > done_before:
                break
            time.sleep(0.002)
        time.sleep(rng.random() * 0.06)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
        if process.returncode == 0:
            assert json.loads(out)["ok"]
            break
        assert process.returncode == -signal.SIGKILL
        if (tmp_path / "killed" / "store").exists():  # killed on its way out
            hidden = {".store.parts", ".store.lock"}
            break
        lines_seen.append((begun if begun.is_file() else aside).read_text().count("\n"))
    else:
        pytest.fail("it never got done")
    assert len(lines_seen) >= 3, "it was killed several times"
    assert lines_seen == sorted(lines_seen), "what was done stayed done"
    assert files_of(tmp_path / "killed" / "store") == files_of(tmp_path / "whole" / "store")
    assert {path.name for path in (tmp_path / "killed").iterdir()} - hidden == {"store"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_kill_9_while_a_store_is_replaced_never_leaves_less_than_a_store(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    for name, options in (("whole", ()), ("killed", ("--seed", "5"))):
        subprocess.run(
            command(2, *options),
            cwd=tmp_path / name,
            env=environment,
            check=True,
            capture_output=True,
        )
    whole, old = files_of(tmp_path / "whole" / "store"), files_of(tmp_path / "killed" / "store")
    assert whole.keys() == old.keys()
    killed, rng = 0, random.Random(3)
    for attempt in range(40):
        process = subprocess.Popen(
            command(1 + attempt % 3, "--overwrite"),
            cwd=tmp_path / "killed",
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        begun = time.monotonic()
        # from before the first shard is begun to after the last is done
        patience = 0.15 + (0.4 + 0.1 * attempt) * rng.random()
        while process.poll() is None and time.monotonic() - begun < patience:
            time.sleep(0.005)
        if process.poll() is None:
            process.kill()
        process.wait(timeout=60)
        folder = tmp_path / "killed" / "store"
        if not folder.exists():  # between the two renames: the next run puts it back
            folder = tmp_path / "killed" / ".store.old"
        assert files_of(folder) in (old, whole)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        killed += 1
    else:
        pytest.fail("it never got done")
    assert killed >= 1
    assert files_of(tmp_path / "killed" / "store") == whole
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["store"]
