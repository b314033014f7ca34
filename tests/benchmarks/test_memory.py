"""The memory that ``--dry-run`` predicts is that of a real process, within what is promised."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


def test_the_prediction_is_within_15_percent_of_a_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = memory.case("tiny", 64)
    result = memory.measure(case, tmp_path, steps=6, with_needed=False)  # it grows at first
    assert result.predicted > 1.2 * 700e6, "more than a process that has torch and does nothing"
    assert 0.85 < result.ratio < 1.15
    assert result.needed is None


def test_the_cases_that_are_promised_are_those_of_the_page() -> None:
    promised = {case.name for case in memory.CASES if case.promised}
    sizes = {name.split()[0] for name in promised}
    assert sizes == {"tiny", "small"}
    page = (memory.REPOSITORY / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for case in memory.CASES:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {case.name} |")]
        ratio = float(row.split("|")[4])
        assert not case.promised or abs(ratio - 1) <= 0.15, row


def test_a_document_has_every_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = memory.Result(memory.CASES[0], 100, 101, 99)
    bad = memory.Result(memory.CASES[0], 100, 140, 99)
    for result, code in ((good, 0), (bad, 1)):
        monkeypatch.setattr(memory, "measure", lambda *_, result=result, **__: result)
        assert memory.main(["--only", memory.CASES[0].name, "--json"]) == code
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["predicted"], row["ratio"]) == (100, result.ratio)
