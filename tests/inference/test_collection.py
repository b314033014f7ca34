from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.inference.conftest import picture
from xvlm_core.errors import DataError
from xvlm_core.inference import collection as module
from xvlm_core.inference.collection import Scanned, Updated, plan, scan, update
from xvlm_core.inference.search_index import Builder, IndexFolder

MODEL = Builder("a1", "")


class Encoder:
    """The mean colour as a vector; remembers how many pictures it was given."""

    def __init__(self, fail_after: int = 10**9) -> None:
        self.calls: list[int] = []
        self.fail_after = fail_after

    def __call__(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        if sum(self.calls) + len(images) > self.fail_after:
            raise KeyboardInterrupt
        self.calls.append(len(images))
        means = [np.asarray(image, np.float32).mean((0, 1)) for image in images]
        return np.stack([mean / np.linalg.norm(mean) for mean in means])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "shots"
    for number, name in enumerate(("a.png", "b.jpg", "sub/c.png", "sub/deep/d.PNG")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(30, 20 + number, number).save(path)
    (root / "notes.txt").write_text("no picture")
    return root


def scanned(root: Path) -> Scanned:
    return scan(root, (".png", ".jpg"), (".grounded.png",))


def step(root: Path, encoder: Encoder) -> Updated:
    folder = IndexFolder(root / ".xvlm-index", root)
    return update(
        folder, scanned(root), folder.read(MODEL), MODEL, encoder, lambda done, total, what: None
    )


def paths(updated: Updated) -> list[str]:
    return [entry.path for entry in updated.index.entries]


def test_pictures_of_all_folders_but_hidden_and_linked_ones(root: Path, tmp_path: Path) -> None:
    for name in (".hidden/x.png", "x.grounded.png", ".x.png", "../elsewhere/y.png"):
        path = root / name
        path.parent.mkdir(exist_ok=True)
        picture(9, 9).save(path)
    (root / "link").symlink_to(tmp_path / "elsewhere")
    found = scanned(root)
    assert [file.path for file in found.files] == ["a.png", "b.jpg", "sub/c.png", "sub/deep/d.PNG"]
    assert (found.not_entered, found.ours, found.problems) == (2, 1, ())


def test_a_picture_has_the_vector_of_its_pixels_and_its_size(root: Path) -> None:
    updated = step(root, Encoder())
    assert [(e.width, e.height) for e in updated.index.entries] == [
        (30, 20), (30, 21), (30, 22), (30, 23),
    ]  # fmt: skip
    for entry, vector_E in zip(updated.index.entries, updated.index.vectors_NE, strict=True):
        with Image.open(root / entry.path) as image:
            mean = np.asarray(image, np.float32).mean((0, 1))
        np.testing.assert_allclose(vector_E, mean / np.linalg.norm(mean), atol=1e-6)


def test_what_did_not_change_is_not_encoded_again(root: Path) -> None:
    first = Encoder()
    before = step(root, first)
    assert sum(first.calls) == 4
    again = Encoder()
    after = step(root, again)
    assert again.calls == []
    assert after.index.entries == before.index.entries
    np.testing.assert_array_equal(after.index.vectors_NE, before.index.vectors_NE)


def test_new_changed_and_removed_pictures(root: Path) -> None:
    step(root, Encoder())
    picture(8, 8, 9).save(root / "aa.png")
    picture(44, 20, 10).save(root / "b.jpg")
    (root / "sub" / "c.png").unlink()
    todo = plan(scanned(root), IndexFolder(root / ".xvlm-index", root).read(MODEL))
    assert (todo.added, todo.changed, todo.removed, todo.to_encode) == (1, 1, 1, 2)
    encoder = Encoder()
    updated = step(root, encoder)
    assert sum(encoder.calls) == 2
    assert paths(updated) == ["a.png", "aa.png", "b.jpg", "sub/deep/d.PNG"]
    assert updated.index.entries[2].width == 44
    fresh = IndexFolder(root / ".xvlm-index", root).read(MODEL)
    assert fresh is not None
    anew = update(
        IndexFolder(root / "sub" / ".index", root), scanned(root), None, MODEL, Encoder(),
        lambda done, total, what: None,
    )  # fmt: skip
    assert fresh.entries == anew.index.entries
    np.testing.assert_allclose(fresh.vectors_NE, anew.index.vectors_NE, atol=1e-6)


def test_a_picture_of_the_same_size_written_later_is_encoded_again(root: Path) -> None:
    step(root, Encoder())
    status = (root / "a.png").stat()
    os.utime(root / "a.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    encoder = Encoder()
    step(root, encoder)
    assert encoder.calls == [1]


def test_removal_alone_is_written(root: Path) -> None:
    step(root, Encoder())
    (root / "a.png").unlink()
    encoder = Encoder()
    assert len(step(root, encoder).index.entries) == 3
    assert encoder.calls == []
    index = IndexFolder(root / ".xvlm-index", root).read(MODEL)
    assert index is not None
    assert len(index.entries) == 3


def test_unreadable_pictures_are_named_and_tried_again(root: Path) -> None:
    (root / "broken.png").write_bytes(b"not a picture")
    updated = step(root, Encoder())
    assert len(updated.index.entries) == 4
    (problem,) = updated.problems
    assert problem.endswith("broken.png: not an image")
    assert step(root, Encoder()).problems == updated.problems
    picture(9, 9).save(root / "broken.png")
    assert "broken.png" in paths(step(root, Encoder()))


def test_no_readable_picture_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"x")
    with pytest.raises(DataError, match="can be read") as caught:
        step(tmp_path, Encoder())
    assert "not an image" in caught.value.details[0]


def test_what_was_encoded_before_an_interruption_is_kept(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 1)
    with pytest.raises(KeyboardInterrupt):
        step(root, Encoder(fail_after=3))
    encoder = Encoder()
    assert len(step(root, encoder).index.entries) == 4
    assert encoder.calls == [1]


def test_the_index_is_written_from_time_to_time(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 1)
    monkeypatch.setattr(module, "WRITE_EVERY_SECONDS", -1.0)
    seen: list[int] = []

    class Watching(Encoder):
        def __call__(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
            index = IndexFolder(root / ".xvlm-index", root).read(MODEL)
            seen.append(0 if index is None else len(index.entries))
            return super().__call__(images)

    step(root, Watching())
    assert seen == [0, 1, 2, 3]


def test_an_index_that_is_complete_is_not_written(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step(root, Encoder())

    def forbid(*_: object) -> None:
        raise AssertionError("a folder that cannot be written can be searched")

    monkeypatch.setattr(IndexFolder, "prepare", forbid)
    assert len(step(root, Encoder()).index.entries) == 4
