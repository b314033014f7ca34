from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from xvlm_core.sources import pictures as checks
from xvlm_core.sources.pictures import Picture, PictureJob, check_pictures


def threads_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: float) -> int:
    """How many threads check pictures of a disk that answers after so many seconds."""
    threads = set()

    def slow(root: Any, job: PictureJob, **_: object) -> Picture:
        time.sleep(seconds)
        threads.add(threading.get_ident())
        return Picture(str(job.picture), 1, 1)

    monkeypatch.setattr(checks, "_checked", slow)
    names = [f"{number}.jpg" for number in range(40)]
    found = list(check_pictures(tmp_path, (PictureJob(name) for name in names)))
    assert [picture.path for picture in found if isinstance(picture, Picture)] == names
    return len(threads)


def test_several_pictures_are_read_at_a_time_from_a_slow_disk_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert threads_used(monkeypatch, tmp_path, 0.005) > 4
    assert threads_used(monkeypatch, tmp_path, 0) == 1
