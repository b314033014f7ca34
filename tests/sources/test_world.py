from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.sources.conftest import Prepare
from xvlm_core.config.schema import Recipe
from xvlm_core.data.images import read_picture
from xvlm_core.data.store import Store
from xvlm_core.errors import OutputError, UsageError
from xvlm_core.sources.prepare import prepare
from xvlm_core.sources.world import stand_in
from xvlm_core.world.grammar import world_record

SMALL = {"train": 5, "val": 3, "test": 2, "unseen": 1, "size": 64, "seed": 3}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_store_holds_what_the_world_draws(tmp_path: Path, prepare_store: Prepare) -> None:
    done = prepare_store("world", SMALL)
    assert done.manifest.splits == {"train": 5, "val": 3, "test": 2, "unseen": 1}
    store = Store.open(tmp_path / "store-0")
    for number, split, index in (
        (0, "train", 0),
        (4, "train", 4),
        (6, "val", 1),
        (10, "unseen", 0),
    ):
        record, picture_hwc = world_record(3, split, index, 64)
        assert store[number] == record
        path = store.picture(store[number])
        assert isinstance(path, Path)
        assert path.parent == tmp_path / "store-0" / "pictures"
        np.testing.assert_array_equal(np.asarray(read_picture(path)), picture_hwc)


def test_the_bytes_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    options = {"train": 150, "val": 40, "test": 0, "unseen": 0, "pairs": 4, "size": 64}
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        prepare("world", folder, {**options, "workers": workers}, command="x")
    assert files_of(tmp_path / "1") == files_of(tmp_path / "3")


def test_another_seed_is_another_world(tmp_path: Path) -> None:
    one = prepare("world", tmp_path / "1", SMALL, command="x").fingerprint
    two = prepare("world", tmp_path / "2", {**SMALL, "seed": 4}, command="x").fingerprint
    assert one != two


def test_pairs_alone_are_those_that_stand_beside_single_pictures(
    tmp_path: Path, prepare_store: Prepare
) -> None:
    both = prepare_store("world", {**SMALL, "pairs": 3}).records
    alone = prepare_store("world", {**SMALL, "pairs": 3, "pairs_only": True}).records
    assert alone
    assert alone == [record for record in both if len(record.images) == 2]
    with pytest.raises(UsageError, match="without pairs"):
        prepare_store("world", {**SMALL, "pairs": 0, "pairs_only": True})


def test_pairs_refer_to_pictures_that_are_there(tmp_path: Path, prepare_store: Prepare) -> None:
    done = prepare_store("world", {**SMALL, "pairs": 100})
    store = Store.open(tmp_path / "store-0")
    pairs = [record for record in done.records if len(record.images) == 2]
    assert {split: sum(p.split == split for p in pairs) for split in done.manifest.splits} == {
        "train": 2,
        "val": 1,
        "test": 1,
        "unseen": 0,
    }
    for record in pairs:
        assert record.statement is not None
        for which in (0, 1):
            assert store.picture(record, which).is_file()


def test_no_pictures_and_too_small_pictures_are_refused(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("train", "val", "test", "unseen"), 0)
    with pytest.raises(UsageError, match="without pictures"):
        prepare("world", tmp_path / "w", nothing, command="x")
    with pytest.raises(UsageError, match="px"):
        prepare("world", tmp_path / "w", {"train": 300, "size": 17, "workers": 2}, command="x")
    assert list(tmp_path.iterdir()) == []


def recipe() -> Recipe:
    return Recipe.model_validate_json(
        json.dumps(
            {
                "task": "pretrain",
                "schedule": {"max_steps": 1},
                "data": {
                    "images": {"stores": ["coco", "web/cc3m"]},
                    "regions": {"stores": ["coco", "vg"]},
                    "validation": ["coco", "refcoco"],
                    "validation_split": "testA",
                },
            }
        )
    )


def test_every_store_that_a_recipe_names_is_filled(tmp_path: Path) -> None:
    made = stand_in(recipe(), tmp_path, command="x", train=4, val=2, size=64)
    assert {name: manifest.splits for name, manifest in made.items()} == {
        "coco": {"train": 4, "testA": 2},
        "refcoco": {"testA": 2},
        "vg": {"train": 4},
        "web/cc3m": {"train": 4},
    }
    first = {}
    for name, manifest in made.items():
        store = Store.open(tmp_path / name)
        store.verify()
        assert store.manifest.source == f"world (stand-in for {name})"
        assert all(store[i].captions for i in range(len(store)))
        assert any(store[i].regions for i in range(len(store))) == (name != "web/cc3m")
        assert all(store.picture(store[i]).is_file() for i in range(len(store)))
        first[store.picture(store[0]).read_bytes()] = manifest
    assert len(first) == 4, "each store has other pictures"


def test_a_stand_in_for_pairs_has_pairs_and_single_pictures_where_they_are_asked_for(
    tmp_path: Path,
) -> None:
    tree = recipe().model_dump(mode="json")
    tree["data"] |= {
        "images": None,
        "regions": {"stores": ["both"]},
        "pairs": {"stores": ["nlvr2", "both"]},
        "validation": ["nlvr2"],
        "validation_split": "dev",
    }
    asked = Recipe.model_validate_json(json.dumps(tree))
    made = stand_in(asked, tmp_path, command="x", train=6, val=4, size=64, workers=1)
    assert {name: manifest.splits for name, manifest in made.items()} == {
        "both": {"train": 9},
        "nlvr2": {"train": 3, "dev": 2},
    }
    nlvr2, both = (Store.open(tmp_path / name) for name in ("nlvr2", "both"))
    for i in range(len(nlvr2)):
        assert nlvr2[i].statement is not None
        assert nlvr2[i].statement.label is not None
        assert len(nlvr2[i].images) == 2
    kinds = [both[i].statement is not None for i in range(9)]
    assert kinds == [False] * 6 + [True] * 3


def test_a_stand_in_refuses_before_it_writes_anything(tmp_path: Path) -> None:
    (tmp_path / "vg").mkdir()
    (tmp_path / "vg" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="vg is not empty"):
        stand_in(recipe(), tmp_path, command="x", train=4, val=2, size=64)
    assert [p.name for p in tmp_path.iterdir()] == ["vg"]


@pytest.mark.parametrize("name", ["../outside", "/outside"])
def test_a_stand_in_never_leaves_its_root(tmp_path: Path, name: str) -> None:
    wrong = recipe().model_copy(
        update={"data": recipe().data.model_copy(update={"validation": (name,)})}
    )
    with pytest.raises(UsageError, match="is outside"):
        stand_in(wrong, tmp_path, command="x")
    assert list(tmp_path.iterdir()) == []
