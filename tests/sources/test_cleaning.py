from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xvlm_core.data.images import PictureError, read_picture
from xvlm_core.data.ledger import Ledger
from xvlm_core.sources import cleaning
from xvlm_core.sources.cleaning import (
    Cleaner,
    Picture,
    PictureJob,
    box_reason,
    check_picture,
    check_pictures,
    corners,
    turn_box,
)


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
    region = Cleaner(Ledger()).region("1", "bar", [16, 8, 64, 24], picture, "object")
    if orientation in (2, 3, 4):  # the size does not tell which way up the box is
        assert region is None
    else:
        assert region is not None
        assert region.box_xyxy_px == expected
        assert (picture.height, picture.width) == shown.shape


def test_a_box_in_shown_pixels_of_a_turned_picture_stays(pictures: Path) -> None:
    for stated in ((100, 60), None):
        picture = check_picture(pictures, PictureJob("turned.jpg", stated))
        assert picture == Picture("turned.jpg", 100, 60, 1)
        region = Cleaner(Ledger()).region("1", "dog", [50, 10, 90, 50], picture, "object")
        assert region is not None
        assert region.box_xyxy_px == (50, 10, 90, 50)


def test_boxes_of_a_turned_square_are_dropped_not_guessed(pictures: Path) -> None:
    picture = check_picture(pictures, PictureJob("square.jpg", (64, 64)))
    ledger = Ledger()
    assert Cleaner(ledger).region("1", "dog", [1, 2, 30, 40], picture, "object") is None
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
    monkeypatch.setattr(cleaning, "read_picture", lambda path: pytest.fail("decoded"))
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


@pytest.mark.parametrize(
    ("box_xyxy_px", "reason"),
    [
        ([0, 0, 160, 90], None),
        ([10.4, 10.4, 60.6, 60.6], None),
        ([-0.0001, 0, 100, 90], "box outside the picture"),
        ([0, 0, 160.0001, 90], "box outside the picture"),
        ([0, 0, 160, 90.0001], "box outside the picture"),
        ([500, 500, 510, 510], "box outside the picture"),
        ([60, 60, 30, 40], "box has no area"),
        ([10, 10, 10, 50], "box has no area"),
        ([10, 10, 13, 13], "box too small"),
        ([0, 0, 16, 9], None),  # exactly 1 %
        ([0, 0, 16, 8.99], "box too small"),
        ([10.4, 3.3, 10.4 + 16, 3.3 + 9], None),  # 1 %, but for rounding
        ([math.nan, 0, 1, 1], "box not finite"),
        ([0, 0, math.inf, 1], "box not finite"),
        ([0, 0, 10**400, 1], "box not finite"),
        (["10", "10", "50", "50"], "box malformed"),
        ([True, 0, 50, 50], "box malformed"),
        ([10, 10, 50], "box malformed"),
        ("1234", "box malformed"),
        (None, "box malformed"),
        ({}, "box malformed"),
    ],
)
def test_reasons_of_boxes(box_xyxy_px: object, reason: str | None) -> None:
    assert box_reason(box_xyxy_px, 160, 90, 0.01) == reason


def test_formats_of_boxes() -> None:
    assert corners([1, 2, 3, 4], "xyxy") == [1, 2, 3, 4]
    assert corners([1, 2, 3, 4], "xywh") == [1, 2, 4, 6]
    assert corners([10, 20, 4, 8], "cxcywh") == [8, 16, 12, 24]
    for wrong in (None, "1234", [1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, True]):
        assert corners(wrong, "xywh") is wrong
    assert corners([10**400, 1, 1, 1], "xywh") == [math.inf] * 4


def test_texts_are_cleaned_or_dropped_with_a_reason() -> None:
    ledger = Ledger()
    cleaner = Cleaner(ledger)
    assert cleaner.text("caption", "1", " a  dog,\n running ") == "a dog, running"
    assert cleaner.text("caption", "2", "a\x00 \u202edog\ud800") == "a dog\ufffd"
    for value in ("", "  ", "...", '?!;:"()*#~', "\u200b"):
        assert cleaner.text("caption", "3", value) is None
    for value in (None, 17, ["a"]):
        assert cleaner.text("caption", "4", value) is None
    assert ledger.counts["caption"] == {
        "read": 10,
        "kept": 2,
        "dropped": {"empty text": 5, "text malformed": 3},
        "repaired": {"characters that cannot be shown removed": 1},
    }


def test_the_box_is_judged_before_the_text() -> None:
    ledger = Ledger()
    picture = Picture("a.jpg", 160, 90)
    cleaner = Cleaner(ledger, min_box_area=0.01)
    assert cleaner.region("1", "", [0, 0, 3, 3], picture, "object") is None
    assert cleaner.region("2", "", [0, 0, 30, 30], picture, "object") is None
    assert ledger.counts["region"]["dropped"] == {"box too small": 1, "empty text": 1}
