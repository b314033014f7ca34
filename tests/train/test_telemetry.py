from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.toy import run_toy
from xvlm_core.errors import OutputError
from xvlm_core.train.telemetry import (
    BarSink,
    MetricsFile,
    Outlook,
    Telemetry,
    console_telemetry,
    describe,
    duration,
    memory_gb,
)

LINE: dict[str, Any] = {
    "kind": "train",
    "step": 30,
    "contrastive": 2.5,
    "lr": 1e-4,
    "grad_norm": 1.0,
    "pictures_per_s": 12.3,
    "data_wait": 0.25,
    "seconds": 9.0,
    "counts": {},
    "dropped": {"too dark": 2, "no caption": 1},
}
OUTLOOK = Outlook(30, 100, 0.3, 125.0)


def test_a_line_says_what_was_computed_the_rate_the_wait_and_what_was_dropped() -> None:
    assert describe(LINE, OUTLOOK) == (
        "step 30/100  contrastive 2.500  lr 1.00e-04  12.3 pictures/s  waiting for data 25%"
        "  02:05 left  dropped 3 (1 no caption, 2 too dark)"
    )
    assert describe({**LINE, "dropped": {}}, Outlook(30, None, 0.3, None)).startswith("step 30  ")
    scores = {"accuracy": {"value": 0.5}, "nothing": {"value": None}}
    line = {"kind": "eval", "step": 3, "scores": scores, "dropped": {}}
    assert describe(line, OUTLOOK) == "step 3/100  accuracy 0.5000  nothing -"
    lost = describe({**line, "dropped": {"empty text": 2}}, OUTLOOK)
    assert lost.endswith("dropped 2 (2 empty text)")
    assert duration(3723) == "1:02:03"


def test_a_line_stays_short_whatever_is_measured() -> None:
    more = {"temperature": 0.07, "memory_gb": 3.14159, "loss_scale": 65536.0, "overflows": 0}
    even = [
        {"rank": 0, "pictures_per_s": 12.3, "data_wait": 0.25},
        {"rank": 1, "pictures_per_s": 11.2, "data_wait": 0.3},
    ]
    line = {**LINE, **more, "ranks": even, "dropped": {}}
    assert describe(line, OUTLOOK) == (
        "step 30/100  contrastive 2.500  lr 1.00e-04  12.3 pictures/s  waiting for data 25%"
        "  3.1 GB  02:05 left"
    )
    backed_off = describe({**line, "loss_scale": 16384.0, "overflows": 2}, OUTLOOK)
    assert "overflows 2 (loss scale 16384)" in backed_off


def test_a_rank_that_is_slower_than_another_is_shown() -> None:
    ranks = [
        {"rank": 0, "pictures_per_s": 12.0, "data_wait": 0.02},
        {"rank": 1, "pictures_per_s": 12.3, "data_wait": 0.01},
        {"rank": 2, "pictures_per_s": 8.1, "data_wait": 0.4},
    ]
    told = describe({**LINE, "ranks": ranks}, OUTLOOK).splitlines()
    assert told[0] == describe(LINE, OUTLOOK)
    assert told[1:] == ["  rank 2 makes 8.1 pictures/s (waiting for data 40%), rank 1 12.3"]


def test_memory_is_the_most_that_was_used() -> None:
    before = memory_gb(torch.device("cpu"))
    assert before > 0.03  # an interpreter with torch
    block = bytearray(200_000_000)
    block[::4096] = b"x" * len(block[::4096])  # touched
    used = memory_gb(torch.device("cpu"))
    assert used < 200  # 10^9 bytes, not kB
    del block
    assert memory_gb(torch.device("cpu")) >= used >= before


def test_a_run_is_told_in_plain_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    stream = io.StringIO()
    run_toy(tmp_path / "run", telemetry=console_telemetry(stream=stream))
    told = stream.getvalue().splitlines()
    assert told[0] == "weights from a seed"
    assert told[1].startswith("parameters: ")
    assert sum(line.startswith("step 20/20  square") for line in told) == 1
    assert sum("closeness" in line for line in told) == 4
    assert "\x1b" not in stream.getvalue()


def test_quiet_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    telemetry = console_telemetry(quiet=True)
    telemetry.line(LINE, OUTLOOK)
    telemetry.note("hello")
    telemetry.close()
    assert capfd.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_and_text_in_brackets_is_no_markup() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    telemetry = console_telemetry(stream=stream)
    assert isinstance(telemetry, Telemetry)
    sink = BarSink(stream)
    sink.line({**LINE, "dropped": {"[bold]": 1}}, OUTLOOK)
    sink.note("[red]note")
    sink.close()
    assert "30%" in stream.getvalue()
    assert "dropped 1 (1" in stream.getvalue()
    assert "[bold])" in stream.getvalue()
    assert "[red]note" in stream.getvalue()


def test_the_log_is_cut_back_to_the_step_and_a_torn_line_goes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, keep_to_step=0)
    for step in (1, 2, 3):
        file.line({"kind": "train", "step": step}, OUTLOOK)
    file.close()
    with path.open("a") as stream:
        stream.write('{"kind": "train", "st')
    file = MetricsFile(path, keep_to_step=2)
    assert [line["step"] for line in file.kept] == [1, 2]
    file.line({"kind": "train", "step": 3}, OUTLOOK)
    file.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"metrics\.jsonl cannot be written"):
        MetricsFile(tmp_path / "metrics.jsonl", keep_to_step=0)
    full = MetricsFile(tmp_path / "log.jsonl", keep_to_step=0)
    full._stream = Full()  # type: ignore[assignment]
    with pytest.raises(OutputError, match="No space left"):
        full.line(LINE, OUTLOOK)
