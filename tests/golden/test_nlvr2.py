"""Recorded outputs of NLVR2 and its pre-training, by the losses and answers of our tasks.

Padding is not computed. Which pictures a text was shown is recorded, and given here.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.golden.case import assert_close, packed
from tests.golden.task_case import TaskCase, shape_of_case
from tests.tasks.recipes import recipe
from xvlm_core.data.batches import PairBatch, PairItem, PretrainBatch
from xvlm_core.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from xvlm_core.models.build import build_model
from xvlm_core.models.nlvr2 import NLVR2
from xvlm_core.models.packing import PackedTexts
from xvlm_core.objectives import pair_assignment
from xvlm_core.tasks import nlvr2_pretrain
from xvlm_core.tasks.base import Moment
from xvlm_core.tasks.building import start_from_checkpoint
from xvlm_core.tasks.nlvr2_eval import Nlvr2Evaluation
from xvlm_core.tasks.recipe_task import RecipeTask
from xvlm_core.train.synthetic import task_without_data
from xvlm_core.weights.folder import ModelInfo, load_model_folder, save_model_folder
from xvlm_core.weights.official import to_official

MOMENT = Moment(1, 0.0, torch.Generator())


@pytest.fixture
def golden(golden_root: Path | None) -> Path:
    if golden_root is None or not (golden_root / "nlvr" / "io.safetensors").is_file():
        pytest.skip("no golden cases here")
    return golden_root


def task(name: str, compat: str = "official") -> RecipeTask:
    data = {"nlvr2": {"pairs": {"stores": ["pairs"]}, "images": None}, "nlvr2_pretrain": {}}[name]
    settings = recipe(Path(), task=name, compat=compat, data={"regions": None, **data})
    return task_without_data(settings)


def pair_batch(io: dict[str, Tensor]) -> PairBatch:
    n = len(io["targets"])
    return PairBatch(
        pictures_ICHW=io["images"],
        texts=packed(io["text_ids"], io["text_atts"]),
        first_B=torch.arange(n),
        second_B=torch.arange(n) + n,
        label_B=io["targets"],
        items=tuple(PairItem(str(b), str(b), "", bool(io["targets"][b])) for b in range(n)),
    )


def probabilities(model: NLVR2, batch: PairBatch) -> Tensor:
    evaluation = Nlvr2Evaluation(
        [],
        "val",
        Tokenizer.from_vocab(list(SPECIAL_TOKENS)),
        image_size=128,
        max_words=30,
        max_tokens=40,
    )
    with torch.no_grad():
        return torch.tensor([p["probability"] for p in evaluation.predict(model, batch)])


@pytest.mark.parametrize("compat", ["none", "official"])
def test_the_loss_and_the_answers_of_nlvr2(golden: Path, compat: str) -> None:
    case = TaskCase.read(golden / "nlvr")
    batch = pair_batch(case.io)
    losses = task("nlvr2", compat).losses(case.model, batch, MOMENT)
    case.equal("loss", losses.parts["statement"])
    assert isinstance(case.model, NLVR2)
    true_B = case.io["logits"].softmax(-1)[:, 1]
    assert_close("probability", probabilities(case.model, batch), true_B)


@pytest.mark.parametrize("compat", ["none", "official"])
def test_the_loss_and_the_weights_of_the_extra_pretraining(
    golden: Path, compat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = TaskCase.read(golden / "nlvr_pretrain")
    io = case.io
    n = len(io["labels"])
    seen: list[Tensor] = []

    def as_recorded(weights_BB: Tensor, *_: object) -> pair_assignment.Assignment:
        seen.append(weights_BB)
        return pair_assignment.Assignment(
            io["first_image_idx"], io["second_image_idx"], io["labels"]
        )

    monkeypatch.setattr(nlvr2_pretrain, "draw_assignment", as_recorded)
    texts = packed(io["text_ids"], io["text_atts"])
    batch = PretrainBatch(
        pictures_ICHW=io["image"],
        texts=texts,
        picture_of_text_B=torch.arange(n),
        mask_BP=None,
        boxes_cxcywh_B4=torch.zeros(n, 4),
        is_region_B=torch.zeros(n, dtype=torch.bool),
        keys_B3=None,
        masked=texts,
        masked_token_M=torch.zeros(0, dtype=torch.int64),
        masked_label_M=torch.zeros(0, dtype=torch.int64),
    )
    losses = task("nlvr2_pretrain", compat).losses(case.model, batch, MOMENT)
    case.equal("loss", losses.parts["pair_assignment"])
    case.equal("sampling_weights", seen[0])


def test_the_recorded_draws_are_what_the_rule_makes_of_them(golden: Path) -> None:
    """The record has the uniform numbers and the drawn pictures apart: our rule joins them so."""
    case = TaskCase.read(golden / "nlvr_pretrain")
    uniform, others = iter(case.meta["uniform_draws"]), case.meta["multinomial_draws"]
    for text, drawn in enumerate(others):
        shows_own = next(uniform) > 1 / 3
        own_first = shows_own and next(uniform) > 0.5
        first, second, label = (
            (int(case.io[name][text])) for name in ("first_image_idx", "second_image_idx", "labels")
        )
        if not shows_own:
            assert (first, second, label) == (*drawn, pair_assignment.NEITHER)
        elif own_first:
            assert (first, second, label) == (text, *drawn, pair_assignment.FIRST)
        else:
            assert (first, second, label) == (*drawn, text, pair_assignment.SECOND)


@pytest.mark.parametrize(
    ("case", "name", "loss"),
    [("nlvr", "nlvr2", "statement"), ("nlvr_pretrain", "nlvr2_pretrain", "pair_assignment")],
)
def test_official_weights_through_our_folder_and_back(
    golden: Path, tmp_path: Path, case: str, name: str, loss: str
) -> None:
    recorded = TaskCase.read(golden / case)
    model = recorded.model
    vocabulary = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(195))]
    info = ModelInfo(task=name, max_words=30, max_tokens=40, config=model.config)
    save_model_folder(tmp_path, model, Tokenizer.from_vocab(vocabulary), info)
    again = load_model_folder(tmp_path).model
    assert isinstance(again, NLVR2)
    if case == "nlvr":
        batch = pair_batch(recorded.io)
        recorded.equal("loss", task(name).losses(again, batch, MOMENT).parts[loss])
    released = load_file(golden / case / "weights.safetensors")
    official = to_official(again.state_dict(), again.config)
    assert official.keys() == released.keys()
    for key, value in released.items():
        assert torch.equal(official[key], value), key


def test_fine_tuning_from_the_recorded_pretraining_starts_as_the_record_says(
    golden: Path, tmp_path: Path
) -> None:
    """The official file, and the same by way of our folder."""
    told = TaskCase.read(golden / "nlvr").meta
    start = told["init_from_pretraining"]
    source = golden / "pretrain_image" / "weights.safetensors"
    config = shape_of_case("nlvr", told["config"])
    plain = build_model(shape_of_case("pretrain_image", told["config"] | {"bert": _plain(told)}))
    start_from_checkpoint(plain, source)
    vocabulary = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(195))]
    info = ModelInfo(task="pretrain", max_words=30, max_tokens=40, config=plain.config)
    save_model_folder(tmp_path, plain, Tokenizer.from_vocab(vocabulary), info)
    models = []
    for place in (source, tmp_path):
        torch.manual_seed(3)
        models.append(build_model(config))
        start_from_checkpoint(models[-1], place)
    one, other = (model.state_dict() for model in models)
    assert all(torch.equal(one[key], other[key]) for key in one)
    released, official = load_file(source), to_official(other, config)
    for key, theirs in start["example"].items():
        assert torch.equal(official[key], released[theirs]), key
    fresh = {key for key in official if key.startswith("cls_head.")}
    assert fresh == set(start["parameters_not_initialised"])
    assert isinstance(models[1], NLVR2)
    texts = PackedTexts.from_lists([[2, 7, 8]])
    pictures = torch.zeros(2, 3, 128, 128)
    models[1].read(pictures, texts, torch.tensor([0]), torch.tensor([1]))


def _plain(told: dict[str, dict[str, dict[str, int]]]) -> dict[str, int]:
    """The text stack of pre-training: its cross layers once."""
    bert = dict(told["config"]["bert"])
    bert["num_hidden_layers"] = (bert["num_hidden_layers"] + bert["fusion_layer"]) // 2
    return bert
