from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.inference.conftest import MakeModel
from xvlm_core.errors import CheckpointError, DataError, OutputError
from xvlm_core.inference import search_index as module
from xvlm_core.inference.search_index import (
    Builder,
    Entry,
    IndexFolder,
    SearchIndex,
    fingerprint,
)
from xvlm_core.weights.folder import read_info

MODEL = Builder("a1", "a model of the tests")


def vectors(n: int, seed: int = 0, width: int = 8) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def index_of(n: int, seed: int = 0) -> SearchIndex:
    entries = tuple(Entry(f"{i:05}.jpg", 10 + i, i, 30, 20) for i in range(n))
    return SearchIndex(entries, vectors(n, seed))


@pytest.fixture
def folder(tmp_path: Path) -> IndexFolder:
    (tmp_path / "shots").mkdir()
    return IndexFolder(tmp_path / "shots" / ".xvlm-index", tmp_path / "shots")


# ---------------------------------------------------------------- search


def by_hand(index: SearchIndex, query_E: NDArray[np.float32], k: int) -> list[int]:
    scores = [float(np.dot(vector_E, query_E)) for vector_E in index.vectors_NE]
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("k", [1, 5, 40, 99])
def test_the_most_similar_are_those_of_a_loop(
    rows: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", rows)
    monkeypatch.setattr(module, "_QUERIES_AT_ONCE", 2)
    index, queries = index_of(40), vectors(5, seed=1)
    hits = index.search(queries, k)
    assert hits.number_QK.tolist() == [by_hand(index, query, k) for query in queries]
    for row, scores in zip(hits.number_QK, hits.similarity_QK, strict=True):
        assert np.all(np.diff(scores) <= 0)
        assert len(row) == min(k, 40)


@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_of_equals_the_first_stands_first(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", rows)
    same = np.eye(4, dtype=np.float32)[[1, 0, 0, 1, 0]]
    index = SearchIndex(tuple(Entry(f"{i}", 1, 1, 1, 1) for i in range(5)), same)
    query = np.eye(4, dtype=np.float32)[:1]
    assert index.search(query, 2).number_QK.tolist() == [[1, 2]]
    assert index.search(query, 5).number_QK.tolist() == [[1, 2, 4, 0, 3]]


def test_no_text_and_no_picture_have_no_answer() -> None:
    assert index_of(3).search(vectors(0), 2).number_QK.shape == (0, 2)
    assert index_of(0).search(vectors(2), 2).number_QK.shape == (2, 0)


def test_faiss_finds_the_same() -> None:
    pytest.importorskip("faiss")
    index, queries = index_of(500), vectors(9, seed=1)
    hits, exact = index.search(queries, 20, faiss_from=1), index.search(queries, 20)
    assert hits.number_QK.tolist() == exact.number_QK.tolist()
    np.testing.assert_allclose(hits.similarity_QK, exact.similarity_QK, atol=1e-6)


def test_faiss_is_asked_from_its_number_of_pictures_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def spy(vectors_NE: NDArray[np.float32], *_: object) -> None:
        asked.append(len(vectors_NE))

    monkeypatch.setattr(module, "_by_faiss", spy)
    queries = vectors(2, seed=1)
    exact = index_of(9).search(queries, 3)
    assert asked == []
    fallen_back = index_of(9).search(queries, 3, faiss_from=9)  # it is not installed: exact
    assert asked == [9]
    assert fallen_back.number_QK.tolist() == exact.number_QK.tolist()


# ---------------------------------------------------------------- on disk


def test_what_is_written_is_read(folder: IndexFolder) -> None:
    index = replace(
        index_of(3), entries=(Entry("a/é.jpg", 1, 2**62, 5, 6), *index_of(3).entries[1:])
    )
    assert folder.read(MODEL) is None
    folder.write(index, MODEL)
    again = folder.read(MODEL)
    assert again is not None
    assert again.entries == index.entries
    np.testing.assert_array_equal(again.vectors_NE, index.vectors_NE)


def test_names_that_are_no_utf8_survive(folder: IndexFolder) -> None:
    name = os.fsdecode(b"\xff.jpg")
    index = replace(index_of(1), entries=(Entry(name, 1, 1, 1, 1),))
    folder.write(index, MODEL)
    again = folder.read(MODEL)
    assert again is not None
    assert again.entries[0].path == name


def test_earlier_states_and_leftovers_are_removed(folder: IndexFolder) -> None:
    folder.write(index_of(3), MODEL)
    (folder.place / ".vectors-dead.safetensors.123").write_bytes(b"half")
    folder.write(index_of(4, seed=1), MODEL)
    names = sorted(os.listdir(folder.place))
    assert len([name for name in names if "vectors-" in name]) == 1
    assert names == [".lock", "index.json", names[-1]]


def test_the_index_moves_with_its_folder(folder: IndexFolder, tmp_path: Path) -> None:
    folder.write(index_of(2), MODEL)
    folder.root.rename(tmp_path / "moved")
    moved = IndexFolder(tmp_path / "moved" / ".xvlm-index", tmp_path / "moved")
    assert moved.read(MODEL) is not None


def refused(folder: IndexFolder, builder: Builder = MODEL) -> DataError:
    with pytest.raises(DataError) as caught:
        folder.read(builder)
    assert "\n" not in caught.value.what
    assert caught.value.try_
    return caught.value


def test_another_model_is_refused_with_the_command_that_rebuilds(folder: IndexFolder) -> None:
    folder.write(index_of(2), MODEL)
    error = refused(folder, Builder("b2", "another"))
    assert "built by another model: a model of the tests" in error.what
    assert error.try_ is not None
    assert f'xvlm predict retrieval {folder.root} "a text" --rebuild' in error.try_
    assert "--index" not in error.try_


def test_an_index_elsewhere_is_named_in_the_command(tmp_path: Path) -> None:
    (tmp_path / "shots").mkdir()
    folder = IndexFolder(tmp_path / "index", tmp_path / "shots")
    folder.write(index_of(2), MODEL)
    assert f"--index {tmp_path / 'index'}" in str(refused(folder, Builder("b2", "")).try_)


def test_the_index_of_another_folder_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    IndexFolder(tmp_path / "index", tmp_path / "a").write(index_of(2), MODEL)
    assert "another folder" in refused(IndexFolder(tmp_path / "index", tmp_path / "b")).what


@pytest.mark.parametrize(
    "damage",
    [
        "cut manifest",
        "no object",
        "no pictures",
        "odd picture",
        "leaves the folder",
        "cut vectors",
        "flipped bit",
        "missing vectors",
        "one picture more",
    ],
)
def test_a_damaged_index_is_one_clear_line(folder: IndexFolder, damage: str) -> None:
    folder.write(index_of(3), MODEL)
    path = folder.place / "index.json"
    (data,) = folder.place.glob("vectors-*")
    content = json.loads(path.read_text())
    if damage == "cut manifest":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "no object":
        path.write_text("[1]")
    elif damage == "no pictures":
        del content["pictures"]
    elif damage == "odd picture":
        content["pictures"][1]["size"] = "big"
    elif damage == "leaves the folder":
        content["vectors"] = "vectors-/../../../x"
    elif damage == "cut vectors":
        data.write_bytes(data.read_bytes()[:-3])
    elif damage == "flipped bit":
        values = bytearray(data.read_bytes())
        values[-1] ^= 1
        data.write_bytes(values)
    elif damage == "missing vectors":
        data.unlink()
    else:
        content["pictures"].append({**content["pictures"][0], "path": "z.jpg"})
    if damage in ("no pictures", "odd picture", "leaves the folder", "one picture more"):
        path.write_text(json.dumps(content))
    error = refused(folder)
    assert "damaged" in error.what
    assert "--rebuild" in str(error.try_)
    assert error.exit_code == 4


def test_an_index_of_a_later_version_is_refused(folder: IndexFolder) -> None:
    folder.write(index_of(2), MODEL)
    path = folder.place / "index.json"
    path.write_text(path.read_text().replace('"xvlm.index/1"', '"xvlm.index/9"'))
    assert "another version" in refused(folder).what


def test_what_is_no_index_is_not_touched(folder: IndexFolder) -> None:
    folder.place.mkdir()
    (folder.place / "letters.txt").write_text("mine")
    for use in (lambda: folder.read(MODEL), lambda: folder.write(index_of(1), MODEL)):
        with pytest.raises(OutputError, match="is no index"):
            use()
    assert os.listdir(folder.place) == ["letters.txt"]
    file = IndexFolder(folder.place / "letters.txt", folder.root)
    with pytest.raises(OutputError, match="is a file"):
        file.read(MODEL)
    with pytest.raises(OutputError, match="is a file"):
        file.write(index_of(1), MODEL)


def test_a_place_that_cannot_be_written_says_what_to_type(
    folder: IndexFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbid)
    with pytest.raises(OutputError, match="cannot be written") as caught:
        folder.write(index_of(1), MODEL)
    assert "--index" in str(caught.value.try_)


def test_a_reader_that_is_overtaken_reads_the_newer_state(
    folder: IndexFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write(index_of(3), MODEL)
    original = folder._read_file
    overtaken = False

    def read_file(name: str) -> bytes | None:
        nonlocal overtaken
        data = original(name)
        if name == "index.json" and not overtaken:
            overtaken = True
            IndexFolder(folder.place, folder.root).write(index_of(5, seed=1), MODEL)
        return data

    monkeypatch.setattr(folder, "_read_file", read_file)
    index = folder.read(MODEL)
    assert index is not None
    assert len(index.entries) == 5


def _write_often(place: str, root: str, seed: int) -> None:
    folder = IndexFolder(Path(place), Path(root))
    for step in range(15):
        folder.write(index_of(2 + seed + step, seed), MODEL)


def test_two_writers_and_a_reader_at_once(folder: IndexFolder) -> None:
    folder.write(index_of(1), MODEL)
    context = multiprocessing.get_context("fork")
    arguments = [(str(folder.place), str(folder.root), seed) for seed in (1, 2)]
    writers = [context.Process(target=_write_often, args=some) for some in arguments]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert folder.read(MODEL) is not None  # whole at every moment
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    index = folder.read(MODEL)
    assert index is not None
    assert len(index.entries) == len(index.vectors_NE) in (16, 17, 18)
    assert len(list(folder.place.glob("*vectors-*"))) == 1


# ---------------------------------------------------------------- which model


def test_the_fingerprint_is_of_what_makes_a_picture_s_vector(
    make_model: MakeModel, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    folder = make_model(tmp_path / "m")
    info = read_info(folder)
    before = fingerprint(folder, info)
    assert fingerprint(folder, info.model_copy(update={"about": "x", "max_words": 2})) == before
    config = info.config.model_copy(update={"embed_dim": 17})
    assert fingerprint(folder, info.model_copy(update={"config": config})) != before
    weights = folder / "model.safetensors"
    state = load_file(weights)
    for name, changes in (("bbox_head.0.bias", False), ("vision_proj.bias", True)):
        save_file({**state, name: np.asarray(state[name] + 1)}, weights)
        assert (fingerprint(folder, info) != before) is changes, name
    name = next(name for name in state if name.startswith("vision."))
    save_file({**state, name: np.asarray(state[name] + 1)}, weights)
    assert fingerprint(folder, info) != before


def test_damaged_weights_have_no_fingerprint(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    info = read_info(folder)
    for data in (b"", b"\xff" * 40):
        (folder / "model.safetensors").write_bytes(data)
        with pytest.raises(CheckpointError, match="damaged"):
            fingerprint(folder, info)
