from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xvlm_core.drawing import colour_of, png_bytes, scale_of
from xvlm_core.errors import OutputError
from xvlm_core.inference.draw import annotate, save_png
from xvlm_core.inference.predictor import Grounding

WHITE = (255, 255, 255)
BLACK = (0, 0, 0)


def found(
    phrase: str, box_xyxy_px: tuple[float, float, float, float], probability: float = 0.9
) -> Grounding:
    return Grounding(phrase, box_xyxy_px, probability, box_xyxy_px, phrase)


def blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), WHITE)


def pixels(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """Where the picture has exactly this colour, ``(H, W)``."""
    return (np.asarray(image) == colour).all(axis=-1)


# ---------------------------------------------------------------- boxes


def test_the_box_is_drawn_on_its_first_and_last_pixels() -> None:
    drawn = annotate(blank(600, 500), [found("x", (100, 200, 301, 402))])
    here = pixels(drawn, colour_of(0))
    assert here[250:400, 100].all()  # left edge
    assert here[250:400, 300].all()  # right edge: half-open, the last pixel is 300
    assert here[401, 100:301].all()  # bottom edge
    assert not here[250:400, :100].any()
    assert not here[250:400, 301:].any()
    assert not here[402:].any()
    assert not here[250:390, 110:290].any()  # hollow


def test_a_small_picture_is_enlarged_by_a_whole_number_and_its_box_with_it() -> None:
    assert scale_of(128, 128) == 3
    drawn = annotate(blank(128, 96), [found("x", (10, 40, 50, 90))])
    assert drawn.size == (384, 288)
    here = pixels(drawn, colour_of(0))
    assert here[150:260, 30].all()
    assert here[150:260, 149].all()
    assert not here[150:260, :30].any()
    assert annotate(blank(640, 20), []).size == (640, 20)


def test_an_improbable_phrase_is_dashed_greyed_and_a_probable_one_is_solid() -> None:
    box = (100, 200, 300, 400)
    solid = annotate(blank(600, 500), [found("x", box, 0.5)])
    dashed = annotate(blank(600, 500), [found("x", box, 0.49)])
    assert pixels(solid, colour_of(0))[399, 100:300].all()
    edge = pixels(dashed, colour_of(0))[399, 100:300]
    assert 0.3 < edge.mean() < 0.7
    assert pixels(dashed, WHITE)[399, 100:300].any()
    assert pixels(dashed, (128, 128, 128)).sum() > 200
    assert not pixels(solid, (128, 128, 128)).any()


def test_a_box_beyond_the_picture_and_a_box_without_area_are_drawn_at_its_edge() -> None:
    drawn = annotate(blank(400, 400), [found("x", (-50, -50, 900, 900))])
    here = pixels(drawn, colour_of(0))
    assert here[100:300, 0].all()
    assert here[100:300, 399].all()
    annotate(blank(400, 400), [found("x", (400, 400, 400, 400)), found("y", (7, 7, 7, 7))])


def test_the_given_picture_is_left_as_it_was() -> None:
    image = blank(500, 400)
    annotate(image, [found("x", (10, 10, 400, 300))])
    assert pixels(image, WHITE).all()


# ---------------------------------------------------------------- colours


def test_phrases_have_distinct_colours() -> None:
    colours = [colour_of(index) for index in range(24)]
    assert len(set(colours)) == 24
    rgb = np.array(colours[:8], dtype=float)
    gaps = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1)[np.triu_indices(8, 1)]
    assert gaps.min() > 60
    drawn = annotate(blank(500, 400), [found("a", (50, 50, 90, 90)), found("a", (50, 50, 90, 90))])
    assert pixels(drawn, colour_of(0)).any()
    assert pixels(drawn, colour_of(1)).any()


def contrast(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    def luminance(colour: tuple[int, int, int]) -> float:
        share = np.array(colour) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("index", range(16))
def test_the_text_of_every_label_stands_out_from_its_plate(index: int) -> None:
    boxes = [found("", (0, 0, 1, 1))] * index + [found("MMMM", (300, 300, 301, 301))]
    drawn = annotate(blank(600, 600), boxes)
    plate = pixels(drawn, colour_of(index))
    rows, columns = np.nonzero(plate)
    label = np.asarray(drawn)[rows.min() : rows.max(), columns.min() : columns.max()]
    inks = [ink for ink in (BLACK, WHITE) if (label == ink).all(axis=-1).sum() > 20]
    assert inks
    assert max(contrast(ink, colour_of(index)) for ink in inks) >= 4.5


# ---------------------------------------------------------------- labels


def ink_of_one_label(box_xyxy_px: tuple[float, float, float, float], phrase: str) -> int:
    """Dark pixels of a drawing whose box is too small to have a dark line of its own."""
    drawn = annotate(blank(500, 400), [found(phrase, box_xyxy_px)])
    return int((np.asarray(drawn)[..., 0] < 115).sum())  # half-way from the plate's 230 to black


@pytest.mark.parametrize(
    "corner", [(0, 0), (499, 0), (0, 399), (499, 399), (250, 0), (499, 200), (250, 399)]
)
def test_a_label_is_whole_wherever_its_box_is(corner: tuple[int, int]) -> None:
    x, y = corner
    middle = ink_of_one_label((250, 200, 251, 201), "the red circle")
    assert middle > 50
    assert ink_of_one_label((x, y, x + 1, y + 1), "the red circle") == middle


def test_labels_of_phrases_at_one_place_do_not_cover_each_other() -> None:
    at = (250, 200, 251, 201)
    n = 12
    drawn = annotate(blank(500, 400), [found("same words", at)] * n)
    alone = int(pixels(annotate(blank(500, 400), [found("same words", at)]), colour_of(0)).sum())
    shown = [int(pixels(drawn, colour_of(index)).sum()) for index in range(n)]
    assert min(shown) > 0.95 * alone


def test_more_labels_than_fit_are_drawn_without_failing() -> None:
    drawn = annotate(blank(384, 40), [found("some words here", (5, 5, 30, 30))] * 40)
    assert drawn.size == (384, 40)


def test_a_long_phrase_is_shortened_and_keeps_its_probability() -> None:
    short = annotate(blank(400, 300), [found("w" * 3000, (100, 100, 101, 101), 0.42)])
    other = annotate(blank(400, 300), [found("w" * 3000, (100, 100, 101, 101), 0.17)])
    plate = pixels(short, (128, 128, 128))
    assert 200 < plate.any(axis=0).sum() <= 400
    changed = (np.asarray(short) != np.asarray(other)).any(axis=(0, 2))
    assert changed[np.nonzero(plate.any(axis=0))[0].max() - 40 :].any()  # its end shows the figure


@pytest.mark.parametrize(
    "phrase", ["象 とり", "🟥🟦", "עברית", "a\nb\tc", "\ud800", "\u202e\u200b", "", "é" * 500]
)
def test_any_phrase_can_be_drawn(phrase: str) -> None:
    drawn = annotate(blank(200, 100), [found(phrase, (20, 20, 90, 90))])
    assert pixels(drawn, colour_of(0)).any()


def test_line_breaks_and_invisible_characters_of_a_phrase_are_not_drawn() -> None:
    box = (20, 20, 90, 90)
    drawn = annotate(blank(400, 300), [found("a\nb\t\u200bc", box)])
    assert drawn.tobytes() == annotate(blank(400, 300), [found("a b c", box)]).tobytes()


@pytest.mark.parametrize("size", [(1, 1), (2000, 3), (3, 2000), (4097, 30)])
def test_pictures_of_any_shape_can_be_drawn_on(size: tuple[int, int]) -> None:
    drawn = annotate(blank(*size), [found("red circle", (0, 0, *size), p) for p in (0.2, 0.9)])
    assert drawn.width % size[0] == drawn.height % size[1] == 0
    assert drawn.width // size[0] == drawn.height // size[1] == scale_of(*size) >= 1


# ---------------------------------------------------------------- files


def test_the_png_says_which_software_made_it(tmp_path: Path) -> None:
    image = annotate(blank(500, 400), [found("x", (10, 10, 400, 300))])
    path = save_png(image, tmp_path / "new folder" / "a.png")
    for source in (path, io.BytesIO(png_bytes(image))):
        with Image.open(source) as read:
            assert read.format == "PNG"
            assert read.info["Software"] == "xvlm"
            assert np.array_equal(np.asarray(read), np.asarray(image))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file.*cannot be written") as caught:
        save_png(blank(4, 4), tmp_path / "file" / "a.png")
    assert caught.value.exit_code == 2
