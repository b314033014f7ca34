"""Painted pictures with questions, and recipes over them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.data.painted import paint, painted_store
from tests.tasks.recipes import merged, recipe
from xvlm_core.config.schema import Recipe
from xvlm_core.data.records import Answer, Question, Record
from xvlm_core.data.store import Store
from xvlm_core.train.synthetic import task_without_data

LEFT = (0.0, 0.0, 30.0, 90.0)
ANSWERS = ("red", "blue", "green", "yes", "no", "2", "top left")


def question(id: str, text: str = "what colour is the circle", **answers: float) -> Question:
    """Answers with their weights; ``red`` where none is given."""
    given = answers or {"red": 1.0}
    named = tuple(Answer(name.replace("_", " "), weight) for name, weight in given.items())
    return Question(id, text, named)


def asked(
    root: Path, name: str, questions: Sequence[Question], *, split: str = "train", **meta: object
) -> Record:
    """A picture that is bright at its left edge, and what is asked about it."""
    paint(root / f"{name}.png", 120, 90, [LEFT])
    return Record(
        id=name,
        images=(f"{name}.png",),
        width=120,
        height=90,
        questions=tuple(questions),
        split=split,
        source="painted",
        meta=dict(meta),
    )


def questions_of(name: str, n: int) -> list[Question]:
    """Of one picture, n questions of one to three answers each."""
    made = []
    for i in range(n):
        first, second, third = (ANSWERS[(i + k) % len(ANSWERS)] for k in range(3))
        weights = [{first: 1.0}, {first: 0.7, second: 0.3}, {first: 0.5, second: 0.3, third: 0.2}]
        made.append(question(f"{name}-q{i}", f"is there {i} red circle", **weights[i % 3]))
    return made


def write_questions(
    root: Path, train: int = 5, val: int = 4, *, answers: Sequence[str] | None = ANSWERS
) -> Store:
    """The store ``asked`` under ``root``: pictures with one question, two, three, one, ..."""
    pictures = root / "pictures"
    made = [asked(pictures, f"t{i}", questions_of(f"t{i}", 1 + i % 3)) for i in range(train)]
    made += [
        asked(pictures, f"v{i}", questions_of(f"v{i}", 1 + i % 3), split="val") for i in range(val)
    ]
    store = painted_store(root / "asked", pictures, made)
    if answers is not None:
        write_list(root / "asked", answers)
    return store


def write_list(folder: Path, answers: object) -> None:
    (folder / "answers.json").write_text(json.dumps({"answers": answers, "source": "built"}))


def questions_recipe(root: Path, **changes: Any) -> Recipe:
    tree = {
        "task": "vqa",
        "data": {
            "images": None,
            "regions": None,
            "questions": {"stores": ["asked"], "batch_size": 4},
            "validation": ["asked"],
            "validation_split": "val",
        },
    }
    return recipe(root, **merged(tree, changes))


def write_question_model(folder: Path, answers: Sequence[str] = ANSWERS) -> Path:
    """A model folder of a model that learnt nothing, and answers differently to each question."""
    data = {"regions": None, "images": None, "questions": {"stores": ["asked"]}}
    made = task_without_data(recipe(folder, task="vqa", data=data))
    made.answers = tuple(answers)  # type: ignore[attr-defined]
    torch.manual_seed(4)
    model = made.build_model()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.6 / parameter[0].numel() ** 0.5)
        model.text.embeddings.word.weight.normal_(std=1.0)
    made.save_model(model, folder)
    return folder
