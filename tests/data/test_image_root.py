from __future__ import annotations

from pathlib import Path

import pytest

from xvlm_core.data.images import ImageRoot, PictureError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for folder in ("root/a", "outside"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.jpg").touch()
    return tmp_path


def test_a_link_that_appears_later_in_a_known_folder_is_still_judged(place: Path) -> None:
    root = ImageRoot(place / "root")
    assert root.find("a/x.jpg") == (place / "root/a/x.jpg").resolve()
    (place / "root/a/y.jpg").symlink_to(place / "outside/x.jpg")
    with pytest.raises(PictureError, match=r"outside the image root.*a/y\.jpg"):
        root.find("a/y.jpg")
    (place / "root/a/z.jpg").symlink_to("x.jpg")
    assert root.find("a/z.jpg") == (place / "root/a/x.jpg").resolve()


def test_a_folder_that_leads_outside_is_refused_every_time(place: Path) -> None:
    (place / "root/link").symlink_to(place / "outside")
    root = ImageRoot(place / "root")
    for _ in range(2):
        with pytest.raises(PictureError, match=r"outside the image root.*link/x\.jpg"):
            root.find("link/x.jpg")


def test_a_missing_file_or_folder_is_for_the_reader_to_say(place: Path) -> None:
    root = ImageRoot(place / "root")
    for name in ("a/none.jpg", "none/x.jpg", "a/x.jpg/y.jpg", "n" * 300 + ".jpg"):
        assert root.find(name) == (place / "root").resolve() / name
