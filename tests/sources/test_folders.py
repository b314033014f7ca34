from __future__ import annotations

from pathlib import Path

from xvlm_core.sources.coco_layout import Place
from xvlm_core.sources.folders import first_that_fits


def test_the_first_naming_by_which_a_picture_is_there(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.jpg").touch()
    places = [Place("a/"), Place("b/"), Place("")]
    names = ["x" * 5000, "0.jpg", "1.jpg"]  # no file system has the first
    assert first_that_fits(tmp_path, names, places) == Place("b/")
    assert first_that_fits(tmp_path, names[:2], places) is None
