from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.painted import GRID, SIDE, TOKENIZER, extent, maker, paint, painted_record
from xvlm_core.data import augment
from xvlm_core.data import samples as samples_module
from xvlm_core.data.boxes import Crop
from xvlm_core.data.images import PictureError
from xvlm_core.data.records import Record, Region
from xvlm_core.data.samples import Sample, SampleProblem

BOX_A, BOX_B, BOX_C = (70.0, 20.0, 100.0, 60.0), (10.0, 30.0, 40.0, 80.0), (45.0, 5.0, 60.0, 85.0)
CHANNEL = {"red box": 0, "green ball": 1, "blue dog": 2}


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return painted_record(
        tmp_path,
        "one",
        [("red box", BOX_A), ("green ball", BOX_B), ("blue dog", BOX_C)],
        captions=("a red box near the ball", "the dog"),
        absent=("a blue ball", "the green dog"),
    )


@pytest.fixture
def plain_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crop and mirror, without the operations that move pixels and colours."""
    monkeypatch.setattr(augment, "rand_augment", lambda image, *_, **__: image)


def path_of(record: Record, tmp_path: Path) -> Path:
    return tmp_path / record.image


def same(one: Sample, other: Sample) -> bool:
    texts = zip(one.texts + one.absent, other.texts + other.absent, strict=True)
    return np.array_equal(one.picture, other.picture) and all(
        (a.ids, a.masked, a.box_xyxy_px) == (b.ids, b.masked, b.box_xyxy_px) for a, b in texts
    )


def test_a_sample_depends_on_record_seed_and_epoch_alone(record: Record, tmp_path: Path) -> None:
    path = path_of(record, tmp_path)
    other = dataclasses.replace(record, id="two")
    for kind in ("of_regions", "of_caption"):
        first = [getattr(maker(absent=1), kind)(record, path, epoch) for epoch in range(4)]
        worker = pickle.loads(pickle.dumps(maker(absent=1)))
        for epoch in (2, 0, 3, 1):  # another worker, another order, other records in between
            getattr(worker, kind)(other, path, epoch)
            assert same(getattr(worker, kind)(record, path, epoch), first[epoch])
        assert not same(first[0], first[1])
        assert not same(getattr(maker(seed=2, absent=1), kind)(record, path, 0), first[0])
        assert not same(getattr(worker, kind)(other, path, 0), first[0])


@pytest.mark.usefixtures("plain_colours")
def test_boxes_lie_on_their_objects_after_crop_flip_and_resize(
    record: Record, tmp_path: Path
) -> None:
    orders = set()
    seen = 0
    for epoch in range(60):
        sample = maker(caption=False).of_regions(record, path_of(record, tmp_path), epoch)
        found = {text.words: text.box_xyxy_px for text in sample.texts}
        for words, box in found.items():
            pixels = extent(sample.picture, CHANNEL[words])
            assert pixels is not None
            assert np.allclose(pixels, box, atol=1.01), (epoch, words)
            seen += 1
        if {"red box", "green ball"} <= set(found):
            orders.add(found["green ball"][0] < found["red box"][0])  # type: ignore[index]
    assert orders == {True, False}, "mirrored and not"
    assert seen > 100


def test_one_box_is_wholly_inside_the_crop_and_comes_first_for_grounding(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops: list[tuple[Crop, tuple[float, ...]]] = []
    draw = samples_module.crop_with_boxes

    def watched(width: int, height: int, keep: tuple[float, ...], *a: object, **k: object) -> Crop:
        crops.append((draw(width, height, keep, *a, **k), keep))  # type: ignore[arg-type]
        return crops[-1][0]

    monkeypatch.setattr(samples_module, "crop_with_boxes", watched)
    named = {region.text: region.box_xyxy_px for region in record.regions}
    chosen = set()
    for epoch in range(30):
        sample = maker(caption=False, max_regions=1).of_regions(
            record, path_of(record, tmp_path), epoch, mask=False, whole_first=True
        )
        crop, keep = crops[-1]
        x1, y1, x2, y2 = keep
        assert crop.left <= x1 < x2 <= crop.right
        assert crop.top <= y1 < y2 <= crop.bottom
        (text,) = sample.texts
        assert named[text.words] == keep
        assert text.masked is None
        width = text.box_xyxy_px[2] - text.box_xyxy_px[0]  # type: ignore[index]
        assert width == pytest.approx((x2 - x1) * SIDE / crop.width), "not cut"
        chosen.add(text.words)
    assert chosen == set(named)


def flipped(record: Record, tmp_path: Path, epochs: int = 40, **changes: object) -> bool:
    """Whether the picture is mirrored in any of the epochs: B is left of A in the original."""
    for epoch in range(epochs):
        sample = maker(caption=False, **changes).of_regions(
            record, path_of(record, tmp_path), epoch
        )
        a, b = extent(sample.picture, 0), extent(sample.picture, 1)
        if a and b and b[0] > a[0]:
            return True
    return False


@pytest.mark.usefixtures("plain_colours")
def test_a_picture_whose_texts_name_a_side_is_not_mirrored(record: Record, tmp_path: Path) -> None:
    sided = dataclasses.replace(
        record,
        regions=tuple(
            dataclasses.replace(region, text=f"{region.text} left of the dog")
            for region in record.regions
        ),
    )
    assert flipped(record, tmp_path)
    assert not flipped(sided, tmp_path)
    assert flipped(sided, tmp_path, careful_flip=False)


@pytest.mark.usefixtures("plain_colours")
def test_the_released_flips_go_by_substrings(record: Record, tmp_path: Path) -> None:
    regions = tuple(dataclasses.replace(r, text=f"bright {r.text}") for r in record.regions)
    bright = dataclasses.replace(record, regions=regions)
    assert flipped(bright, tmp_path)
    assert not flipped(bright, tmp_path, compat_official=True)


@pytest.mark.usefixtures("plain_colours")
def test_only_absent_texts_that_are_used_forbid_the_mirror(record: Record, tmp_path: Path) -> None:
    sided = dataclasses.replace(record, absent=("box left of the ball",))
    assert flipped(sided, tmp_path, absent=0)
    assert not flipped(sided, tmp_path, absent=1)


@pytest.mark.usefixtures("plain_colours")
def test_a_caption_that_names_a_side_is_not_mirrored(tmp_path: Path) -> None:
    boxes = [("red box", (0.0, 0.0, 20.0, 90.0)), ("green ball", (100.0, 0.0, 120.0, 90.0))]
    plain = painted_record(tmp_path, "c", boxes, captions=["a box near the ball"])
    sided = dataclasses.replace(plain, captions=("a box left of the ball",))

    def mirrored(record: Record) -> int:
        count = 0
        for epoch in range(40):
            sample = maker().of_caption(record, path_of(record, tmp_path), epoch)
            red, green = extent(sample.picture, 0), extent(sample.picture, 1)
            count += bool(red and green and red[0] > green[0])
        return count

    assert mirrored(plain) > 0
    assert mirrored(sided) == 0


def test_a_caption_takes_one_of_the_places(record: Record, tmp_path: Path) -> None:
    path = path_of(record, tmp_path)
    for epoch in range(10):
        sample = maker(max_regions=2, augment=False).of_regions(record, path, epoch)
        assert [text.box_xyxy_px is None for text in sample.texts] == [True, False]
        assert sample.texts[0].mask_P is None
        without = maker(max_regions=2, augment=False, caption=False).of_regions(record, path, epoch)
        assert [text.box_xyxy_px is None for text in without.texts] == [False, False]


def test_every_region_gets_a_place_in_some_epoch(record: Record, tmp_path: Path) -> None:
    words = {
        maker(max_regions=1, caption=False)
        .of_regions(record, path_of(record, tmp_path), epoch)
        .texts[0]
        .words
        for epoch in range(30)
    }
    assert words == set(CHANNEL)


@pytest.mark.parametrize(
    ("box", "patches"),
    [
        ((16.0, 0.0, 32.0, 16.0), [1]),
        ((0.0, 32.0, 16.0, 48.0), [8]),
        ((48.0, 48.0, 64.0, 64.0), [15]),
        ((0.0, 0.0, 64.0, 16.0), [0, 1, 2, 3]),
        ((15.0, 15.0, 17.0, 17.0), [0, 1, 4, 5]),
        ((0.0, 0.0, 64.0, 64.0), list(range(16))),
        ((63.5, 63.5, 64.0, 64.0), [15]),
    ],
)
def test_the_patches_of_a_region_are_those_its_box_touches(
    tmp_path: Path, box: tuple[float, float, float, float], patches: list[int]
) -> None:
    record = painted_record(tmp_path, "p", [("red box", box)], size=(SIDE, SIDE))
    sample = maker(augment=False).of_regions(record, path_of(record, tmp_path), 0)
    mask = sample.texts[0].mask_P
    assert mask is not None
    assert np.flatnonzero(mask).tolist() == patches
    assert sample.texts[0].box_xyxy_px == box
    if box[2] - box[0] >= 1:
        patch = SIDE // GRID
        red = sample.picture[:, :, 0].reshape(GRID, patch, GRID, patch).max((1, 3)).reshape(-1)
        assert np.array_equal(red > 127, mask), "the painted patches"


def test_masked_tokens_are_tokens_of_the_text(record: Record, tmp_path: Path) -> None:
    for epoch in range(10):
        sample = maker().of_regions(record, path_of(record, tmp_path), epoch)
        for text in sample.texts:
            assert text.masked is not None
            assert text.ids[0] == TOKENIZER.cls_id
            assert 0 not in text.masked.positions
            for at, label in zip(text.masked.positions, text.masked.labels, strict=True):
                assert text.ids[at] == label
        assert all(text.masked is None for text in sample.absent)


def test_absent_texts_come_as_asked_and_own_words_are_all_texts_of_the_record(
    record: Record, tmp_path: Path
) -> None:
    path = path_of(record, tmp_path)
    assert maker(absent=0).of_regions(record, path, 0).absent == ()
    one = [maker(absent=1).of_regions(record, path, e).absent for e in range(20)]
    assert {text.words for (text,) in one} == set(record.absent)
    sample = maker(absent=5, max_regions=1).of_regions(record, path, 0)
    assert {text.words for text in sample.absent} == set(record.absent)
    assert sample.own_words == {*CHANNEL, "a red box near the ball", "the dog"}


def test_texts_that_are_word_pieces_already_are_taken_as_they_are(tmp_path: Path) -> None:
    ready = painted_record(
        tmp_path, "ready", [("dog ##gy near , RED box", BOX_A)], absent=("##gy ball",)
    )
    path = path_of(ready, tmp_path)
    pieces = maker(tokenized_regions=True, absent=1, augment=False).of_regions(ready, path, 0)
    (text,) = pieces.texts
    names = ("[CLS]", "dog", "##gy", "near", "[UNK]", "[UNK]", "box")
    assert tuple(map(TOKENIZER.token, text.ids)) == names
    assert text.words == "dog ##gy near , RED box"
    assert pieces.own_words == {text.words}
    assert tuple(map(TOKENIZER.token, pieces.absent[0].ids)) == ("[CLS]", "##gy", "ball")
    cleaned = maker(augment=False).of_regions(ready, path, 0).texts[0]
    assert cleaned.words == "dog gy near red box"


def test_cut_tokens_and_empty_texts_are_counted(record: Record, tmp_path: Path) -> None:
    path = path_of(record, tmp_path)
    long = dataclasses.replace(
        record,
        captions=("a red box near the ball",),
        regions=(*record.regions, Region("?!", BOX_A)),
        absent=("...", "the dog"),
    )
    sample = maker(max_tokens=3, max_regions=9, absent=2, augment=False).of_regions(long, path, 0)
    assert max(len(text.ids) for text in sample.texts) == 3
    assert sample.cut == 4
    assert sample.empty == 2
    assert len(sample.texts) == 4
    assert len(sample.absent) == 1
    assert maker(max_tokens=3).of_caption(long, path, 0).cut == 4
    assert maker().of_caption(long, path, 0).cut == 0


def reason(record: Record, path: Path, kind: str = "of_regions", **changes: object) -> str:
    with pytest.raises(SampleProblem) as caught:
        getattr(maker(**changes), kind)(record, path, 0)
    return caught.value.reason


def test_a_record_that_gives_no_sample_says_why(record: Record, tmp_path: Path) -> None:
    path = path_of(record, tmp_path)
    empty = dataclasses.replace(record, captions=("...",), regions=(Region("?", BOX_A),))
    assert reason(empty, path) == "empty text"
    assert reason(empty, path, "of_caption") == "empty text"
    assert reason(dataclasses.replace(record, captions=()), path, "of_caption") == "no caption"
    captions_only = dataclasses.replace(record, regions=())
    assert reason(captions_only, path) == "no region"
    outside = dataclasses.replace(
        record, regions=(Region("red box", (100.0, 0.0, 130.0, 20.0)),), captions=()
    )
    assert reason(outside, path) == "no region"
    with pytest.raises(PictureError, match="missing"):
        maker().of_regions(record, tmp_path / "none.png", 0)


def test_regions_of_other_kinds_are_as_if_they_were_not_there(
    record: Record, tmp_path: Path
) -> None:
    path = path_of(record, tmp_path)
    kinds = ("object", "region", "attribute")
    mixed = dataclasses.replace(
        record,
        regions=tuple(
            dataclasses.replace(region, kind=kind)
            for region, kind in zip(record.regions, kinds, strict=True)
        ),
    )
    without = dataclasses.replace(mixed, regions=mixed.regions[1:])
    for epoch in range(8):  # the draw is of the rest: crop, order and masks are the same
        made = maker(kinds=("region", "attribute")).of_regions(mixed, path, epoch)
        assert same(made, maker().of_regions(without, path, epoch))
        assert "red box" in made.own_words, "still in the picture: no negative of it"
    only = maker(kinds=("object",), caption=False).of_regions(mixed, path, 0)
    assert [text.words for text in only.texts] == ["red box"]


def test_a_record_without_a_region_of_the_wanted_kinds_gives_no_sample(
    record: Record, tmp_path: Path
) -> None:
    path = path_of(record, tmp_path)
    assert reason(record, path, kinds=("region", "phrase")) == "no region of the wanted kinds"
    # as a record without regions: its captions still serve
    assert maker(kinds=("region",)).of_caption(record, path, 0).texts
    captions_only = dataclasses.replace(record, regions=())
    assert reason(captions_only, path, kinds=("region",)) == "no region"


def test_a_picture_of_another_size_than_the_record_says_is_refused(
    record: Record, tmp_path: Path
) -> None:
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # upright, it is 90 x 120
    Image.new("RGB", (120, 90)).save(turned, exif=exif)
    assert reason(record, turned) == "size mismatch"
    upright = dataclasses.replace(
        record, width=90, height=120, regions=(Region("red box", (0.0, 0.0, 90.0, 120.0)),)
    )
    assert maker(caption=False).of_regions(upright, turned, 0).texts


def test_boxes_below_one_pixel_are_regions_but_not_under_the_official_integers(
    tmp_path: Path,
) -> None:
    paint(tmp_path / "t.png", 120, 90, [])
    record = Record("t", ("t.png",), 120, 90, regions=(Region("red box", (0.0, 0.0, 0.5, 0.5)),))
    for epoch in range(20):
        made = maker(max_regions=1).of_regions(record, tmp_path / "t.png", epoch)
        assert len(made.texts) == 1
    assert reason(record, tmp_path / "t.png", compat_official=True) == "no region"


def test_without_augmentation_the_whole_picture_is_seen(record: Record, tmp_path: Path) -> None:
    first = maker(augment=False).of_regions(record, path_of(record, tmp_path), 0)
    for epoch in range(1, 8):
        sample = maker(augment=False).of_regions(record, path_of(record, tmp_path), epoch)
        assert np.array_equal(sample.picture, first.picture)
    boxes = {text.words: text.box_xyxy_px for text in first.texts}
    for words, box in (("red box", BOX_A), ("green ball", BOX_B)):
        scaled = np.array(box) * np.array([SIDE / 120, SIDE / 90] * 2)
        assert boxes[words] == pytest.approx(tuple(scaled))
