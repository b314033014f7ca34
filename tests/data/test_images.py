from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from xvlm_core.data.images import PictureError, picture_size, read_picture, resolve_inside

ORIENTATION = 0x0112


def coloured(width: int = 30, height: int = 20) -> Image.Image:
    """Red in the upper left quarter, blue elsewhere."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 2] = 255
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reason_of(source: Path | bytes, **options: int) -> str:
    with pytest.raises(PictureError) as error:
        read_picture(source, **options)
    return error.value.reason


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_reads_each_format_whatever_the_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(encoded(coloured(), kind))
    image = read_picture(path)
    assert (image.mode, image.size) == ("RGB", (30, 20))
    assert type(image) is Image.Image
    assert picture_size(path) == (30, 20)
    red, _, blue = image.getpixel((3, 3))  # type: ignore[misc]
    assert red > 200
    assert blue < 60


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = encoded(coloured(32, 16), kind, exif=exif)
    image = read_picture(content)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert image.size == upright.size == picture_size(content)
    assert np.array_equal(np.asarray(image), np.asarray(upright))
    assert ImageOps.exif_transpose(image).size == image.size, "the tag went with the turn"


def test_damaged_exif_counts_as_upright() -> None:
    content = encoded(coloured(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff\x01")
    assert read_picture(content).size == picture_size(content) == (30, 20)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        image = read_picture(encoded(Image.fromarray(values), kind))
        assert [image.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 128, 255)]


def test_transparency_lies_on_white_without_warnings() -> None:
    clear = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    clear.paste((0, 200, 0, 255), (0, 0, 4, 8))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 200, 0, 200, 0, 0])
    palette.paste(0, (0, 0, 4, 8))
    grey = Image.new("LA", (8, 8), (90, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for content in (
            encoded(clear, "PNG"),
            encoded(palette, "PNG", transparency=bytes([255, 0])),
            encoded(palette, "PNG", transparency=1),
            encoded(clear, "WEBP", lossless=True),
        ):
            image = read_picture(content)
            assert image.getpixel((6, 4)) == (255, 255, 255)
            assert image.getpixel((1, 4)) == (0, 200, 0)
        assert read_picture(encoded(grey, "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_becomes_rgb() -> None:
    image = read_picture(encoded(coloured().convert("CMYK"), "JPEG"))
    red, _, blue = image.getpixel((3, 3))  # type: ignore[misc]
    assert image.mode == "RGB"
    assert red > 200
    assert blue < 60


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue", "green")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_picture(content).getpixel((4, 4)) == (255, 0, 0)


def test_unusable_files_are_named_by_their_reason(tmp_path: Path) -> None:
    whole = encoded(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)),
        "JPEG",
    )
    empty = tmp_path / "empty.jpg"
    empty.touch()
    os.mkfifo(tmp_path / "pipe.jpg")
    assert reason_of(empty) == reason_of(b"") == "empty file"
    assert reason_of(whole[: len(whole) // 2]) == "truncated image"
    assert reason_of(encoded(coloured(400, 400), "PNG")[:200]) == "truncated image"
    assert reason_of(b"<html>404</html>") == "not an image"
    assert reason_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "not an image"
    assert reason_of(tmp_path / "none.jpg") == reason_of(empty / "x.jpg") == "missing"
    assert reason_of(tmp_path) == reason_of(tmp_path / "pipe.jpg") == "not a file"
    assert reason_of(tmp_path / "a\0b.jpg") == "not a file name"


def test_damaged_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        whole = encoded(coloured(40, 30), kind)
        for _ in range(60):
            content = bytearray(whole)
            for at in rng.integers(len(content), size=4):
                content[at] = rng.integers(256)
            for read in (read_picture, picture_size):
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        read(bytes(content))
                except PictureError:
                    pass


def test_large_pictures_are_refused_from_the_header() -> None:
    content = encoded(coloured(200, 100), "PNG")
    assert reason_of(content, max_pixels=19_999) == "too large"
    assert read_picture(content, max_pixels=20_000).size == (200, 100)


def test_the_size_comes_from_the_header_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    monkeypatch.setattr(
        ImageFile.ImageFile, "load", lambda image: decoded.append(image.format or "")
    )
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF"):
        assert picture_size(encoded(coloured(), kind)) == (30, 20)
    assert decoded == []


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert reason_of(path) == "too large"
    with pytest.raises(PictureError):
        picture_size(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


@pytest.mark.parametrize(
    ("relative", "reason"),
    [
        ("../outside.jpg", "outside the image root"),
        ("a/../../outside.jpg", "outside the image root"),
        ("a/../inside.jpg", "outside the image root"),
        ("..\\outside.jpg", "outside the image root"),
        ("a/..", "outside the image root"),
        ("/etc/passwd", "absolute path"),
        ("C:\\pictures\\x.jpg", "absolute path"),
        ("C:x.jpg", "absolute path"),
        ("\\\\server\\x.jpg", "absolute path"),
        ("file:///etc/passwd", "a URL"),
        ("http://127.0.0.1:1/x.jpg", "a URL"),
        ("data:image/png;base64,AAAA", "a URL"),
        ("HTTPS://example.org/x.jpg", "a URL"),
        ("x.jpg\x00.png", "not a file name"),
        ("x.jpg\n", "not a file name"),
        ("a\\x.jpg", "not a file name"),
        ("lone \ud800.jpg", "not a file name"),
        ("", "not a file name"),
        (" ", "not a file name"),
        (".", "not a file name"),
        ("a/", "not a file name"),
        (None, "not a file name"),
    ],
)
def test_no_name_leads_out_of_the_image_root(tmp_path: Path, relative: str, reason: str) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    with pytest.raises(PictureError) as error:
        resolve_inside(root, relative)
    assert error.value.reason == reason
    str(error.value).encode("utf-8")


def test_links_are_followed_before_they_are_judged(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "a").mkdir(parents=True)
    outside.mkdir()
    (outside / "x.jpg").touch()
    (root / "file.jpg").symlink_to(outside / "x.jpg")
    (root / "folder").symlink_to(outside)
    (root / "up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    (root / "a" / "in.jpg").touch()
    (root / "good.jpg").symlink_to("a/in.jpg")
    (tmp_path / "rootlink").symlink_to(root)
    for relative in ("file.jpg", "folder/x.jpg", "up/outside/x.jpg", "folder/missing.jpg"):
        with pytest.raises(PictureError, match="outside the image root"):
            resolve_inside(root, relative)
    inside = (root / "a" / "in.jpg").resolve()
    assert resolve_inside(root, "good.jpg") == inside
    assert resolve_inside(tmp_path / "rootlink", "a/in.jpg") == inside
    with pytest.raises(PictureError):
        read_picture(resolve_inside(root, "loop"))


def test_a_folder_whose_name_begins_like_the_root_is_outside(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root2").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "root2")
    with pytest.raises(PictureError, match="outside the image root"):
        resolve_inside(tmp_path / "root", "link/x.jpg")


def test_ordinary_names_are_accepted(tmp_path: Path) -> None:
    for name in ("x.jpg", "train2014/COCO_1.jpg", "a b (1).png", "日本.jpg", "..x.jpg", "ab:c.jpg"):
        assert resolve_inside(tmp_path, name) == tmp_path.resolve() / name


HOSTILE = {
    "zero_byte.jpg": "empty file",
    "truncated.jpg": "truncated image",
    "bomb_30000x30000.png": "too large",
    "html_page.jpg": "not an image",
    "png_named.jpg": (160, 90),
    "gray16.png": (64, 48),
    "cmyk.jpg": (160, 90),
    "palette_alpha.png": (160, 90),
    "exif_rotated.jpg": (200, 113),
    "animated.gif": (160, 90),
    "one_pixel.png": (1, 1),
    "ok.jpg": (160, 90),
}


@pytest.mark.parametrize(("name", "expected"), HOSTILE.items())
def test_hostile_pictures(shared: Path, name: str, expected: object) -> None:
    path = shared / "data" / "hostile" / name
    if isinstance(expected, str):
        assert reason_of(path) == expected
        return
    assert read_picture(path).size == expected
    assert picture_size(path) == expected


def test_hostile_paths(shared: Path) -> None:
    root = shared / "data" / "hostile"
    reasons = []
    for line in (root / "path_traversal.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            read_picture(resolve_inside(root, json.loads(line)["image"]))
            reasons.append("ok")
        except PictureError as error:
            reasons.append(error.reason)
    assert reasons[-1] == "ok"
    assert set(reasons[:-1]) <= {
        "outside the image root",
        "absolute path",
        "a URL",
        "not a file name",
        "missing",
    }
    assert len(reasons) == 14


def test_reading_pictures_needs_no_framework() -> None:
    code = (
        "import sys, xvlm_core.data.images, xvlm_core.data.augment, xvlm_core.data.masking,"
        " xvlm_core.data.text, xvlm_core.data.tokenizer;"
        "print([m for m in ('torch', 'transformers', 'timm', 'cv2') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
