"""Every file of the agreed hostile samples, through the command line, as EXPECTED.md says.

The same behaviours are tested on files made here in the tests of each source.
"""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.sources.hostile import HOSTILE, Place, Ran, contents, megabytes_of
from xvlm_cli.app import main
from xvlm_core.data.images import read_picture


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Place]:
    """Afterwards the samples are as before, and there is no file PWNED anywhere."""
    if not HOSTILE.is_dir():
        pytest.skip("no ../shared beside the repository")
    made = Place(tmp_path, capsys)
    before = contents(made.samples)
    monkeypatch.chdir(made.here)
    yield made
    assert contents(made.samples) == before
    assert not [p for p in tmp_path.rglob("*") if "PWNED" in p.name]
    assert not Path("/tmp/PWNED_absolute").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"samples", "here"}


def rejected(name: str, reason: str) -> Callable[[Place], None]:
    def check(place: Place) -> None:
        ran = place.picture(name)
        assert ran.code == 4
        assert ran.lost == {
            ("picture", name): reason,
            ("caption", "lines.jsonl:1"): f"picture: {reason}",
        }
        assert [r.id for r in ran.records] == ["ok.jpg"]
        assert reason in ran.error

    return check


def accepted(name: str, width: int, height: int) -> Callable[[Place], None]:
    def check(place: Place) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ran = place.picture(name)
            image = read_picture(place.samples / name)
        assert ran.code == 0
        record = next(r for r in ran.records if r.id == name)
        assert (record.width, record.height) == image.size == (width, height)
        assert image.mode == "RGB"

    return check


def grey_16_bits(place: Place) -> None:
    accepted("gray16.png", *read_picture(place.samples / "gray16.png").size)(place)
    pixels = np.asarray(read_picture(place.samples / "gray16.png")).astype(int)
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert (pixels == 255).mean() < 0.5
    assert len(np.unique(pixels)) > 8


def bomb(place: Place) -> None:
    rejected("bomb_30000x30000.png", "too large")(place)
    assert megabytes_of(place.samples, "read_picture(Path('bomb_30000x30000.png'))") < 60


def turned_boxes(place: Place) -> None:
    ran = place.coco("exif_rotated.json")
    assert ran.code == 0
    boxes = [r.box_xyxy_px for record in ran.records for r in record.regions]
    assert [(r.width, r.height) for r in ran.records] == [(200, 113)] * 2
    assert boxes[0] == pytest.approx(boxes[1], abs=1)
    assert boxes[1] == (106, 7, 154, 101)


def boxes_that_are_no_numbers(place: Place) -> None:
    ran = place.coco("nan_boxes.json")
    assert ran.dropped("region") == {"box not finite": 4}
    assert ran.counts["region"]["kept"] == 1


def bad_boxes(place: Place) -> None:
    ran = place.coco("bad_boxes.json")
    by_reason: dict[str, set[int]] = {}
    for (_, id), reason in ran.lost.items():
        by_reason.setdefault(reason, set()).add(int(id))
    assert by_reason == {
        "box outside the picture": {1, 2, 6, 7, 8},
        "box has no area": {3, 4, 5},
        "box too small": {9},
        "box malformed": {10, 11, 12},
    }
    assert ran.counts["region"]["kept"] == 2
    assert ran.code == 4  # of the three that are no boxes


def missing_references(place: Place) -> None:
    ran = place.coco("missing_refs.json")
    assert ran.code == 4
    assert ran.counts["region"]["kept"] == 1
    assert {id: reason for (item, id), reason in ran.lost.items() if item == "region"} == {
        "2": "unknown image",
        "3": "unknown category",
        "4": "picture: missing",
        "5": "picture: size mismatch",
    }


def odd_captions(place: Place) -> None:
    ran = place.lines("captions_odd.jsonl")
    lost = {int(id.rpartition(":")[2]) for item, id in ran.lost if item == "caption"}
    assert lost == {1, 2, 3, 4, 6, 14, 15, 16, 17, 18}  # 17: its empty text only
    assert ran.counts["caption"]["kept"] == 9
    captions = ran.records[0].captions
    assert captions[0] == "lone \ufffd surrogate"
    for text in captions:
        text.encode()
        assert text.isprintable()
        assert text == " ".join(text.split())
    assert len(captions[2].split()) == 10_000  # cut where it is read for training


def paths_that_leave_the_folder(place: Place) -> None:
    ran = place.lines("path_traversal.jsonl")
    assert ran.code == 4
    assert [r.id for r in ran.records] == ["ok.jpg"]
    assert ran.dropped("picture") == {
        "outside the image root": 3,
        "absolute path": 2,
        "a URL": 2,
        "not a file name": 4,
        "missing": 2,
    }


def links_that_leave_the_folder(place: Place) -> None:
    subprocess.run(["sh", str(place.samples / "make_symlink.sh"), str(place.samples)], check=True)
    ran = place.lines("path_traversal.jsonl")
    assert ran.lost["picture", "link_out.jpg"] == "outside the image root"
    rejected("link_up/here/lines.jsonl", "outside the image root")(place)
    ran = place.prepare("image-folder", place.samples, "--labels-from", "folder", "--allow-empty")
    assert ran.lost["picture", "link_out.jpg"] == "outside the image root"
    assert ran.lost["picture", "link_up/"] == "outside the image root"


def refused(run: Callable[[Place], Ran], *words: str) -> Callable[[Place], None]:
    """One clear error, exit code 4, no store."""

    def check(place: Place) -> None:
        ran = run(place)
        assert ran.code == 4
        assert ran.records == []
        for word in words:
            assert word in ran.error
        assert len(ran.error.splitlines()) < 8

    return check


def refcoco(name: str) -> Callable[[Place], Ran]:
    def run(place: Place) -> Ran:
        folder = place.here / "refcoco"
        folder.mkdir()
        shutil.copy(place.samples / name, folder / "refs(unc).p")
        shutil.copy(HOSTILE.parent / "refcoco" / "instances.json", folder)
        images = HOSTILE.parent / "coco_2014_images"
        return place.prepare("refcoco", folder, "--images", images)

    return run


def recipe(name: str, *words: str) -> Callable[[Place], None]:
    def check(place: Place) -> None:
        code = main(["pretrain", "--recipe", str(place.samples / name), "--dry-run"])
        error = place.capsys.readouterr().err
        assert code == 3
        assert "Traceback" not in error
        for word in (name, *words):
            assert word in error
        load = f"load_mapping(Path({name!r}).read_text(), {name!r})"
        assert megabytes_of(place.samples, load) < 60

    return check


def pairs_of(name: str, kept: list[str], lost: dict[int, str]) -> Callable[[Place], None]:
    def check(place: Place) -> None:
        images = place.here / "images"
        images.mkdir()
        for number in range(1, 7):
            shutil.copy(place.samples / "ok.jpg", images / f"{number}.jpg")
        ran = place.prepare(
            *("web-pairs", "--annotations", place.samples / name, "--images", images),
            *("--columns", "caption,url", "--name-template", "{url_name}"),
        )
        assert ran.code == 4
        assert [r.captions[0] for r in ran.records] == kept
        found = {
            int(id.rpartition(":")[2]): reason
            for (item, id), reason in ran.lost.items()
            if item in ("line", "caption")
        }
        assert found.keys() == lost.keys()
        for row, word in lost.items():
            assert word in found[row]

    return check


def lines(name: str, kept: int, lost: dict[int, str]) -> Callable[[Place], None]:
    def check(place: Place) -> None:
        ran = place.lines(name)
        assert ran.code == (4 if lost else 0)
        assert ran.counts["caption"]["kept"] == kept
        assert ran.lost == {("line", f"{name}:{n}"): reason for n, reason in lost.items()}
        assert not any("\r" in text for text in ran.records[0].captions)

    return check


def base64_pictures(place: Place) -> None:
    ran = place.prepare("xvlm-official", place.samples / "bad_binary.jsonl")
    assert ran.code == 4
    assert len(ran.records) == 1
    assert sorted(ran.dropped("picture")) == ["not an image", "not base64"]
    assert any("1" in id for (item, id), r in ran.lost.items() if r == "not base64")


def evil_tar(place: Place) -> None:
    ran = place.prepare("webdataset", place.samples / "evil.tar")
    assert ran.code == 4
    assert [r.id for r in ran.records] == ["evil/000000000"]
    assert ran.lost["picture", "evil/000000002"] == "no text"
    assert ran.lost["picture", "evil/000000004"] == "empty file"
    assert ran.lost["caption", "evil/000000003"] == "no image"
    assert "duplicate member" in ran.lost.values()
    members = {id.split(":", 1)[1] for (item, id) in ran.lost if item == "line"}
    for name in ("../PWNED", "/tmp/PWNED_absolute", "sub/../../PWNED", "link", "hard", "pipe"):
        assert any(name in member for member in members), (name, members)


def cut_tar(place: Place) -> None:
    ran = place.prepare("webdataset", place.samples / "truncated.tar")
    assert ran.code == 4
    assert len(ran.records) == 1
    assert ran.lost["line", "truncated.tar"] == "unexpected end"


def cut_parquet(place: Place) -> Ran:
    folder = place.here / "shards"
    folder.mkdir()
    shutil.copy(HOSTILE.parent / "cc3m" / "00000.tar", folder)
    shutil.copy(place.samples / "truncated.parquet", folder / "00000.parquet")
    return place.prepare("web-pairs", folder)


def coco(name: str) -> Callable[[Place], Ran]:
    return lambda place: place.coco(name)


def json_lines(name: str) -> Callable[[Place], Ran]:
    return lambda place: place.lines(name)


ROWS: dict[str, Callable[[Place], None]] = {
    "zero_byte.jpg": rejected("zero_byte.jpg", "empty file"),
    "truncated.jpg": rejected("truncated.jpg", "truncated image"),
    "html_page.jpg": rejected("html_page.jpg", "not an image"),
    "bomb_30000x30000.png": bomb,
    "png_named.jpg": accepted("png_named.jpg", 160, 90),
    "gray16.png": grey_16_bits,
    "cmyk.jpg": accepted("cmyk.jpg", 160, 90),
    "palette_alpha.png": accepted("palette_alpha.png", 160, 90),
    "exif_rotated.jpg": accepted("exif_rotated.jpg", 200, 113),
    "exif_rotated.json": turned_boxes,
    "animated.gif": accepted("animated.gif", 160, 90),
    "one_pixel.png": accepted("one_pixel.png", 1, 1),
    "ok.jpg": accepted("ok.jpg", 160, 90),
    "nan_boxes.json": boxes_that_are_no_numbers,
    "bad_boxes.json": bad_boxes,
    "missing_refs.json": missing_references,
    "captions_odd.jsonl": odd_captions,
    "duplicate_ids.json": refused(coco("duplicate_ids.json"), "duplicate_ids.json", "id 1"),
    "path_traversal.jsonl": paths_that_leave_the_folder,
    "make_symlink.sh": links_that_leave_the_folder,
    "evil_refs(unc).p": refused(refcoco("evil_refs(unc).p"), "refs(unc).p", "io.open"),
    "bad_refs(unc).p": refused(refcoco("bad_refs(unc).p"), "refs(unc).p", "damaged"),
    "evil.yaml": recipe("evil.yaml", ":2", "tag"),
    "yaml_bomb.yaml": recipe("yaml_bomb.yaml", "grows without end"),
    "truncated.jsonl": lines("truncated.jsonl", 5, {6: "not JSON"}),
    "middle_broken.jsonl": lines(
        "middle_broken.jsonl", 3, {2: "not JSON", 5: "not an object", 6: "not an object"}
    ),
    "bom_crlf.jsonl": lines("bom_crlf.jsonl", 5, {}),
    "utf16.jsonl": refused(json_lines("utf16.jsonl"), "utf16.jsonl", "UTF-16"),
    "latin1.tsv": pairs_of("latin1.tsv", ["a man on a moped"], {1: "not UTF-8"}),
    "odd_rows.tsv": pairs_of(
        "odd_rows.tsv",
        ["a man on a moped", 'a "quoted text'],
        {2: "columns", 3: "empty text", 5: "columns", 6: "URL"},
    ),
    "deep.json": refused(coco("deep.json"), "deep.json", "nested too deep"),
    "wrong_top.json": refused(coco("wrong_top.json"), "wrong_top.json", "images"),
    "empty.json": refused(coco("empty.json"), "empty.json", "empty file"),
    "double_key.json": refused(json_lines("double_key.json"), "repeated key"),
    "bad_binary.jsonl": base64_pictures,
    "evil.tar": evil_tar,
    "truncated.tar": cut_tar,
    "truncated.parquet": refused(cut_parquet, "00000.parquet", "not a whole parquet file"),
}


@pytest.mark.parametrize("name", ROWS)
def test_hostile_file(place: Place, name: str) -> None:
    ROWS[name](place)


def test_every_hostile_file_has_a_row() -> None:
    if not HOSTILE.is_dir():
        pytest.skip("no ../shared beside the repository")
    assert {path.name for path in HOSTILE.iterdir()} - {"EXPECTED.md"} == set(ROWS)
