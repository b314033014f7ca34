"""A place where commands are run on a copy of the hostile samples."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from xvlm_cli.app import main
from xvlm_core.data.records import Record
from xvlm_core.data.store import Store

HOSTILE = REPOSITORY.parent / "shared" / "data" / "hostile"


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    error: str
    records: list[Record]
    counts: dict[str, Any]
    lost: dict[tuple[str, str], str]

    def dropped(self, item: str) -> dict[str, int]:
        return dict(self.counts[item]["dropped"])


class Place:
    """A copy of the samples in which commands are run."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.samples, self.here, self.capsys = folder / "samples", folder / "here", capsys
        shutil.copytree(HOSTILE, self.samples)
        for path in (self.samples, *self.samples.iterdir()):
            path.chmod(0o755)
        self.here.mkdir()

    def prepare(self, *arguments: object) -> Ran:
        """``xvlm prepare-data``; what was read is what was kept and dropped."""
        store = self.here / "store"
        words = [str(argument) for argument in arguments]
        code = main(["prepare-data", *words, "-o", str(store), "--workers", "1", "--overwrite"])
        error = self.capsys.readouterr().err
        assert "Traceback" not in error
        if not store.is_dir():
            assert code != 0
            return Ran(code, error, [], {}, {})
        opened = Store.open(store)
        opened.verify()
        counts = opened.manifest.counts
        for item, count in counts.items():
            assert count["read"] == count["kept"] + sum(count["dropped"].values()), item
        lines = (store / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines]
        lost = {(e["item"], e["id"]): e["reason"] for e in entries if e["what"] == "dropped"}
        records = [opened[i] for i in range(len(opened))]
        return Ran(code, error, records, counts, lost)

    def lines(self, name: str) -> Ran:
        return self.prepare("jsonl", self.samples / name, "--images", self.samples)

    def coco(self, name: str) -> Ran:
        options = ("--images", self.samples, "--min-box-area", "0.01")
        return self.prepare("coco", "--annotations", self.samples / name, *options)

    def picture(self, name: str) -> Ran:
        """A caption each of this picture and of a sound one."""
        text = "".join(json.dumps({"image": n, "text": "a"}) + "\n" for n in (name, "ok.jpg"))
        (self.here / "lines.jsonl").write_text(text)
        return self.prepare("jsonl", self.here / "lines.jsonl", "--images", self.samples)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def megabytes_of(folder: Path, expression: str) -> float:
    """By how much the memory of a process rises at most while it evaluates something."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("memory is measured on Linux only")
    code = f"""
import re
from pathlib import Path
from xvlm_core.config.yaml_tree import load_mapping
from xvlm_core.data.images import PictureError, read_picture
from xvlm_core.errors import XvlmError
status = Path("/proc/self/status")  # not getrusage: that starts with the peak of the parent
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", status.read_text())[1])
before = peak()
try:
    {expression}
except (PictureError, XvlmError):
    print((peak() - before) / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)
