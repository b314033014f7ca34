"""Every command of the README and of the docs is executed, and ends as the page says.

A block of commands carries a mark above it: ``test: exits 0 4`` (exit codes line by line) or
``test: dry-run`` (each line with ``--dry-run``). ``ci: ...`` marks the two lines that ``.ci/run``
executes literally, ``setup: ...`` what makes a checkout. Pages are read in order, as by a reader:
a later command may use what an earlier one made.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import REPOSITORY
from tests.weights.official_files import official_file
from xvlm_cli.app import main
from xvlm_core.config.schema import Recipe
from xvlm_core.inference.checkpoints import builtin_folder
from xvlm_core.train import memory

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]*) -->\n)?```bash\n(?P<code>.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: Path
    mark: str
    commands: tuple[str, ...]


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
            lines = [line.split("  #")[0].rstrip() for line in match["code"].splitlines()]
            commands = tuple(line for line in lines if line and not line.startswith("#"))
            found.append(Block(page, match["mark"] or "", commands))
    return found


BLOCKS = blocks()
LOAD_OF = memory.load_of
COUNTED: dict[tuple[str, str, int | None], memory.Load] = {}


def test_every_block_says_how_it_is_executed() -> None:
    unmarked = [f"{b.page.name}: {b.commands[0]}" for b in BLOCKS if not b.mark]
    assert unmarked == []
    assert len(BLOCKS) > 8
    for block in BLOCKS:
        kind = block.mark.split()[0]
        assert kind in ("test:", "ci:", "setup:"), block
        assert kind != "setup:" or block.page.name == "CONTRIBUTING.md"


def test_ci_runs_the_two_lines_of_the_readme() -> None:
    marks = [b.mark for b in BLOCKS if b.mark.startswith("ci:")]
    assert marks == ["ci: demo", "ci: test"]
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    for mark in marks:
        assert f"line {mark.removeprefix('ci: ')}" in script


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the things that the pages speak of."""
    folder = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)

    def picture(path: Path, width: int = 320, height: int = 240) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)

    picture(folder / "image.jpg")
    builtin = builtin_folder()
    assert builtin is not None
    for run in ("demo/runs/grounding", "runs/coco-tiny"):  # in place of trained ones
        shutil.copytree(builtin, folder / run)
    for name, task in (
        ("16m_base.th", "pretrain"),
        ("itr_coco/checkpoint_best.pth", "retrieval"),
        ("capt_coco/model_state_epoch_4.th", "captioning"),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        torch.save({"model": official_file(task, vocab_size=30522)}, folder / name)
    for name in ("kitchen", "street", "garden"):
        picture(folder / "pictures" / f"{name}.jpg")
    page = (REPOSITORY / "docs" / "own-data.md").read_text(encoding="utf-8")
    rows = page.split("```text\n", 1)[1].split("```", 1)[0]
    (folder / "mine.csv").write_text(rows, encoding="utf-8")
    lines = [
        {"image": "kitchen.jpg", "text": "a kitchen with a wooden table"},
        {"image": "kitchen.jpg", "text": "red mug on the table", "box": [212, 140, 268, 201]},
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "mine.jsonl").write_text(text + "\n", encoding="utf-8")
    coco = folder / "PATH" / "TO" / "COCO"
    images, boxes, captions = [], [], []
    for i in range(1, 5):
        name = f"{i:012d}.jpg"
        picture(coco / "train2017" / name)
        images.append({"id": i, "file_name": name, "width": 320, "height": 240})
        box = {"id": i, "image_id": i, "category_id": 1, "bbox": [20, 30, 120, 90], "iscrowd": 0}
        boxes.append({**box, "area": 10800})
        captions.append({"id": i, "image_id": i, "caption": "a dog on the grass"})
    categories = [{"id": 1, "name": "dog"}]
    (coco / "annotations").mkdir()
    instances = {"images": images, "annotations": boxes, "categories": categories}
    for name, tree in (
        ("instances", instances),
        ("captions", {"images": images, "annotations": captions}),
    ):
        path = coco / "annotations" / f"{name}_train2017.json"
        path.write_text(json.dumps(tree), encoding="utf-8")
    return folder


@pytest.fixture
def counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a size of a task is counted once: for the base model that takes half a minute.

    What the figures are is for the tests of ``train.memory``; here it is how commands end.
    """

    def load_of(recipe: Recipe, parts: int) -> memory.Load:
        key = (recipe.task, recipe.model.size, recipe.model.image_size)
        if key not in COUNTED:
            COUNTED[key] = LOAD_OF(recipe, parts)
        return replace(COUNTED[key], parts=parts)

    monkeypatch.setattr(memory, "load_of", load_of)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.mark.startswith("test:")], ids=str)
@pytest.mark.usefixtures("counted_once")
def test_commands_end_as_the_page_says(
    block: Block, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(workplace)
    kind = block.mark.removeprefix("test: ")
    if kind == "dry-run":
        expected = [0] * len(block.commands)
    else:
        expected = [int(code) for code in kind.removeprefix("exits ").split()]
    assert len(expected) == len(block.commands), "one exit code a command"
    for command, code in zip(block.commands, expected, strict=True):
        words = shlex.split(command)
        assert words[0] == "xvlm", command
        arguments = words[1:] + (["--dry-run"] if kind == "dry-run" else [])
        assert main(arguments) == code, f"{command}\n{capsys.readouterr().err}"
        capsys.readouterr()
