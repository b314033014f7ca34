from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from xvlm_core.data.shard_writer import Encoded
from xvlm_core.data.store import Store, StoreWriter

TINY = (
    "model.size=tiny",
    "text.tokenizer=world",
    "init.vision=null",
    "init.text=null",
    "data.images.stores=[coco]",
    "data.regions=null",
    "data.images.batch_size=2",
    "train.micro_batches=1",
    "data.workers=0",
    "schedule.max_steps=1",
    "schedule.warmup=0",
    "train.precision=fp32",
)


@pytest.fixture
def leaky(world_store: Path, tmp_path: Path) -> Path:
    """data/coco and data/flickr30k: a test picture of the latter is trained on."""
    world = Store.open(world_store)
    for name, split, same in (
        ("coco", "train", ("coco:1", "flickr:1234567")),
        ("flickr30k", "test", ("flickr:1234567",)),
    ):
        folder = tmp_path / "data" / name
        folder.parent.mkdir(exist_ok=True)
        command = f"xvlm prepare-data jsonl {name}.jsonl -o data/{name}"
        with StoreWriter(folder, image_root=folder, source="x", command=command) as writer:
            for i in range(3):
                record = world[i]
                picture = world.picture(record)
                assert isinstance(picture, Path)
                record = dataclasses.replace(
                    record, id=str(i), split=split, same_as=same if i == 0 else ()
                )
                writer.add(record, (Encoded(picture.name, picture.read_bytes(), "PNG"),))
    return tmp_path


def test_a_recipe_refuses_to_train_on_what_a_task_is_tested_on(xvlm: Run, leaky: Path) -> None:
    done = xvlm("pretrain", "--recipe", "4m", *TINY)
    assert done.code == 4
    assert "pictures that tasks are evaluated on are in the training data" in done.err
    assert "coco: 1 of flickr30k (test), such as 0 (flickr:1234567, there 0)" in done.err
    assert "--exclude data/flickr30k:test" in done.err
    assert "data.leaks=allow" in done.err
    assert not (leaky / "runs").exists()


def test_it_trains_when_it_is_told_to_and_says_so(xvlm: Run, leaky: Path) -> None:
    done = xvlm("pretrain", "--recipe", "4m", *TINY, "data.leaks=allow")
    assert done.code == 0
    assert "trained on although held out: coco: 1 of flickr30k" in done.err


def test_what_could_not_be_compared_is_said(xvlm: Run, leaky: Path) -> None:
    done = xvlm("pretrain", "--recipe", "4m", *TINY, "data.held_out=[nlvr2]")
    assert done.code == 0
    assert "leaks: not prepared, so not compared: nlvr2" in done.err
