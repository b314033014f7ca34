from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xvlm_core.data.images import PictureError, read_picture
from xvlm_core.data.jpeg_header import ENOUGH, PlainJpeg, plain_jpeg
from xvlm_core.data.pixels import read_pixels


def noise(width: int = 61, height: int = 40, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("mode", "layers"), [("L", 1), ("RGB", 3), ("CMYK", 4)])
@pytest.mark.parametrize("progressive", [False, True])
def test_an_ordinary_header_is_read(mode: str, layers: int, progressive: bool) -> None:
    data = jpeg(noise(mode=mode), progressive=progressive, comment=b"a comment")
    assert plain_jpeg(data[:ENOUGH]) == PlainJpeg(61, 40, layers)


def test_what_may_turn_the_picture_is_left_to_pillow() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert plain_jpeg(jpeg(noise(), exif=exif)) is None
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert plain_jpeg(jpeg(noise(), xmp=xmp)) is None


def test_other_formats_and_bytes_are_left_to_pillow() -> None:
    buffer = io.BytesIO()
    noise().save(buffer, "PNG")
    for data in (b"", b"\xff", b"\xff\xd8", b"<html>", buffer.getvalue(), bytes(100)):
        assert plain_jpeg(data) is None


def changed(data: bytes) -> Iterator[bytes]:
    """Every byte of the header in turn made 0, 255 or one more, and every shorter start."""
    end = data.index(b"\xff\xda") + 14
    for at in range(end):
        for value in (0, 255, (data[at] + 1) % 256):
            yield data[:at] + bytes([value]) + data[at + 1 :]
        yield data[:at]


def test_a_damaged_header_never_gives_another_answer_than_pillow() -> None:
    answers = 0
    for data in changed(jpeg(noise(), comment=b"c", icc_profile=b"profile")):
        found = plain_jpeg(data)
        if found is None:
            continue
        answers += 1
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            assert image.size == found[:2]
            assert len(image.getbands()) == found.layers
            assert image.getexif().get(0x0112, 1) == 1
    assert answers > 100


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 90},
        {"quality": 60, "progressive": True},
        {"subsampling": 0},
        {"subsampling": "4:2:2", "optimize": True},
        {"keep_rgb": True},
    ],
)
def test_pixels_are_those_of_pillow(options: dict[str, object], tmp_path: Path) -> None:
    data = jpeg(noise(201, 133), **options)
    (tmp_path / "a.jpg").write_bytes(data)
    expected = np.asarray(read_picture(data))
    for source in (data, tmp_path / "a.jpg"):
        pixels = read_pixels(source)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_pixels_of_other_jpegs_are_those_of_pillow(mode: str) -> None:
    data = jpeg(noise(mode=mode))
    np.testing.assert_array_equal(read_pixels(data), np.asarray(read_picture(data)))


def test_a_turned_picture_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_pixels(jpeg(noise(), exif=exif)).shape == (61, 40, 3)


def test_damage_has_the_reason_that_pillow_gives(tmp_path: Path) -> None:
    whole = jpeg(noise(201, 133))
    for data, reason in ((whole[: len(whole) // 2], "truncated image"), (b"", "empty file")):
        with pytest.raises(PictureError) as caught:
            read_pixels(data)
        assert caught.value.reason == reason
    with pytest.raises(PictureError, match="missing"):
        read_pixels(tmp_path / "none.jpg")


def test_without_a_decoder_in_torchvision_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(noise())
    expected = read_pixels(data)
    monkeypatch.setitem(__import__("sys").modules, "torchvision.io", None)
    np.testing.assert_array_equal(read_pixels(data), expected)
