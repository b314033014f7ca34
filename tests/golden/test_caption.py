"""Recorded outputs of captioning, by the losses and captions of our tasks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.golden.case import packed
from tests.golden.task_case import TaskCase
from tests.tasks.recipes import recipe
from xvlm_core.data.batches import CaptionBatch, CaptionItem
from xvlm_core.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from xvlm_core.models.captioner import Captioner
from xvlm_core.tasks.base import Moment
from xvlm_core.tasks.captioning import CaptioningTask
from xvlm_core.tasks.captioning_eval import CaptioningEvaluation
from xvlm_core.train.synthetic import task_without_data
from xvlm_core.weights.folder import ModelInfo, load_model_folder, save_model_folder
from xvlm_core.weights.official import to_official

MOMENT = Moment(1, 0.0, torch.Generator())
# ids 0 to 4 are special, then "a picture of", then w0, w1, ... (as the record says)
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of"]
VOCABULARY += [f"w{i}" for i in range(192)]
PROMPT = "a picture of "


@pytest.fixture
def case(golden_root: Path | None) -> TaskCase:
    if golden_root is None or not (golden_root / "caption" / "io.safetensors").is_file():
        pytest.skip("no golden cases here")
    assert set(VOCABULARY[:5]) == set(SPECIAL_TOKENS)
    return TaskCase.read(golden_root / "caption")


def task(compat: str = "none", smoothing: float = 0.1) -> CaptioningTask:
    settings = recipe(
        Path(),
        task="captioning",
        compat=compat,
        data={"regions": None},
        captioning={"label_smoothing": smoothing},
        scoring={"max_length": 12},
    )
    made = task_without_data(settings)
    assert isinstance(made, CaptioningTask)
    return made


def batch_of(io: dict[str, Tensor], given: int = 4) -> CaptionBatch:
    n = len(io["image"])
    return CaptionBatch(
        pictures_ICHW=io["image"],
        texts=packed(io["caption_ids"], io["caption_atts"]),
        picture_of_text_B=torch.arange(n),
        given=given,
    )


def evaluation(beams: int) -> CaptioningEvaluation:
    made = CaptioningEvaluation(
        [], "val", Tokenizer.from_vocab(VOCABULARY), image_size=128, max_words=40, max_tokens=40
    )
    made.prompt = PROMPT
    made.scoring = made.scoring.model_copy(update={"beams": beams})
    return made


@pytest.mark.parametrize("compat", ["none", "official"])
def test_the_loss_of_captions(case: TaskCase, compat: str) -> None:
    parts = task(compat).losses(case.model, batch_of(case.io), MOMENT).parts
    case.equal("loss", parts["language_modeling"])
    parts = task(compat, 0.0).losses(case.model, batch_of(case.io), MOMENT).parts
    case.equal("loss_without_smoothing", parts["language_modeling"])


@pytest.mark.parametrize(("beams", "name"), [(3, "beam3"), (1, "greedy")])
def test_the_captions_of_the_pictures(case: TaskCase, beams: int, name: str) -> None:
    n = len(case.io["image"])
    batch = dataclasses.replace(
        batch_of(case.io), items=tuple(CaptionItem(str(i), str(i), ("",)) for i in range(n))
    )
    with torch.no_grad():
        found = evaluation(beams).predict(case.model, batch)
    assert [row["caption"] for row in found] == case.meta[f"captions_{name}"]
    scores = "beam3_scores" if beams == 3 else "greedy_mean_logprob"
    case.equal(scores, torch.tensor([row["log_probability"] for row in found]))


def test_official_weights_through_our_folder_and_back(
    case: TaskCase, golden_root: Path, tmp_path: Path
) -> None:
    model = case.model
    info = ModelInfo(
        task="captioning", max_words=40, max_tokens=40, config=model.config, prompt=PROMPT
    )
    save_model_folder(tmp_path, model, Tokenizer.from_vocab(VOCABULARY), info)
    loaded = load_model_folder(tmp_path)
    assert loaded.info.prompt == PROMPT
    again = loaded.model
    assert isinstance(again, Captioner)
    parts = task().losses(again, batch_of(case.io), MOMENT).parts
    case.equal("loss", parts["language_modeling"])
    released = load_file(golden_root / "caption" / "weights.safetensors")
    official = to_official(again.state_dict(), again.config)
    assert official.keys() == released.keys()
    for key, value in released.items():
        assert torch.equal(official[key], value), key
