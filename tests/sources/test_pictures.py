from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xvlm_core.data.images import PictureError, read_picture
from xvlm_core.data.ledger import Ledger
from xvlm_core.data.records import Region
from xvlm_core.sources import pictures as checks
from xvlm_core.sources.cleaning import Cleaner
from xvlm_core.sources.drafts import Draft, Said
from xvlm_core.sources.pictures import (
    Picture,
    PictureJob,
    check_picture,
    check_pictures,
    turn_box,
)


def kept_region(said: Said, picture: Picture, ledger: Ledger | None = None) -> Region | None:
    record = Cleaner(ledger or Ledger()).record(Draft("1", ("a.jpg",), (said,)), [picture], "x")
    return record.regions[0] if record is not None else None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_box_ends_on_what_it_was_drawn_around(tmp_path: Path, orientation: int) -> None:
    stored = np.zeros((64, 96, 3), np.uint8)
    stored[8:24, 16:64] = 255  # rows 8 to 23, columns 16 to 63
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=100)
    shown = np.asarray(read_picture(tmp_path / "a.jpg"))[..., 0] > 128
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    expected = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert turn_box((16, 8, 64, 24), 96, 64, orientation) == expected

    picture = check_picture(tmp_path, PictureJob("a.jpg", (96, 64)))
    region = kept_region(Said("region", "bar", "1", [16, 8, 64, 24]), picture)
    if orientation in (2, 3, 4):  # the size does not tell which way up the box is
        assert region is None
    else:
        assert region is not None
        assert region.box_xyxy_px == expected
        assert (picture.height, picture.width) == shown.shape


def test_a_box_in_shown_pixels_of_a_turned_picture_stays(pictures: Path) -> None:
    for stated in ((100, 60), None):
        picture = check_picture(pictures, PictureJob("turned.jpg", stated))
        assert picture == Picture("turned.jpg", 100, 60, 1, bytes=picture.bytes)
        assert picture.bytes == (pictures / "turned.jpg").stat().st_size
        region = kept_region(Said("region", "dog", "1", [50, 10, 90, 50]), picture)
        assert region is not None
        assert region.box_xyxy_px == (50, 10, 90, 50)


def test_boxes_of_a_turned_square_are_dropped_not_guessed(pictures: Path) -> None:
    picture = check_picture(pictures, PictureJob("square.jpg", (64, 64)))
    ledger = Ledger()
    assert kept_region(Said("region", "dog", "1", [1, 2, 30, 40]), picture, ledger) is None
    assert ledger.counts["region"]["dropped"] == {"unclear which way up the box is": 1}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cut.jpg", "truncated image"),
        ("empty.jpg", "empty file"),
        ("page.jpg", "not an image"),
        ("none.jpg", "missing"),
        ("../ok.jpg", "outside the image root"),
        ("/etc/passwd", "absolute path"),
        ("\udc80.jpg", "not a file name"),
        (".", "not a file name"),
    ],
)
def test_a_bad_picture_has_its_reason(pictures: Path, name: str, reason: str) -> None:
    with pytest.raises(PictureError) as caught:
        check_picture(pictures, PictureJob(name))
    assert caught.value.reason == reason


def test_a_wrong_size_names_both_sizes(pictures: Path) -> None:
    with pytest.raises(PictureError, match="stated 999x999, really 160x90") as caught:
        check_picture(pictures, PictureJob("ok.jpg", (999, 999)))
    assert caught.value.reason == "size mismatch"


@pytest.mark.parametrize("extension", ["jpg", "png", "gif", "webp", "bmp"])
def test_sound_pictures_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str
) -> None:
    Image.effect_noise((60, 40), 50).save(tmp_path / f"a.{extension}")
    monkeypatch.setattr(checks, "read_picture", lambda path: pytest.fail("decoded"))
    assert check_picture(tmp_path, PictureJob(f"a.{extension}")).width == 60


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_a_picture_that_is_cut_off_is_found_from_its_end(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    Image.effect_noise((60, 40), 50).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(PictureError):
        check_picture(tmp_path, PictureJob(path.name))


def test_bytes_after_the_end_of_a_sound_picture_are_no_loss(pictures: Path) -> None:
    with open(pictures / "ok.jpg", "ab") as file:
        file.write(b"trailing" * 100)
    assert check_picture(pictures, PictureJob("ok.jpg")).width == 160


def test_damage_in_the_middle_is_found_when_asked_to_decode(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((60, 40), 50).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)
    job = PictureJob("a.png")
    check_picture(tmp_path, job)
    with pytest.raises(PictureError):
        check_picture(tmp_path, job, decode=True)


def test_many_pictures_come_back_in_order(pictures: Path) -> None:
    names = ["ok.jpg", "none.jpg", "other.png", "cut.jpg"] * 700
    found = list(check_pictures(pictures, (PictureJob(name) for name in names)))
    assert len(found) == len(names)
    for name, result in zip(names, found, strict=True):
        if name in ("ok.jpg", "other.png"):
            assert isinstance(result, Picture)
            assert result.path == name
        else:
            assert isinstance(result, PictureError)
            assert name in str(result)
