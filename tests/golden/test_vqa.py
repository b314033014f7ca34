"""Recorded outputs of VQA, by the loss and the answers of our task. Padding is not computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests.golden.case import assert_close, packed
from tests.golden.task_case import TaskCase, shape_of_case
from tests.tasks.recipes import recipe
from xvlm_core.data.batches import QuestionBatch
from xvlm_core.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from xvlm_core.inference.answer_ranking import Candidates, first_words, rank_answers
from xvlm_core.models.build import build_model
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.vqa import VQA
from xvlm_core.tasks.base import Moment
from xvlm_core.tasks.building import start_from_checkpoint
from xvlm_core.tasks.vqa import VqaTask
from xvlm_core.train.synthetic import task_without_data
from xvlm_core.weights.folder import ModelInfo, load_model_folder, save_model_folder
from xvlm_core.weights.official import to_official

SEP = 3
MOMENT = Moment(1, 0.0, torch.Generator())
TOKENIZER = Tokenizer.from_vocab([*SPECIAL_TOKENS, *(f"w{i}" for i in range(195))])


@pytest.fixture
def golden(golden_root: Path | None) -> Path:
    if golden_root is None or not (golden_root / "vqa" / "io.safetensors").is_file():
        pytest.skip("no golden cases here")
    return golden_root


@pytest.fixture
def case(golden: Path) -> TaskCase:
    return TaskCase.read(golden / "vqa")


def task(compat: str = "none") -> VqaTask:
    data = {"questions": {"stores": ["asked"]}, "images": None, "regions": None}
    made = task_without_data(recipe(Path(), task="vqa", compat=compat, data=data))
    assert isinstance(made, VqaTask)
    return made


def words_of(ids: Tensor, atts: Tensor) -> list[list[int]]:
    """CLS and the words of padded texts; their end is left off."""
    return [row[: int(mask.sum()) - 1].tolist() for row, mask in zip(ids, atts, strict=True)]


def batch_of(io: dict[str, Tensor]) -> QuestionBatch:
    answers = PackedTexts.from_lists(words_of(io["answer_ids"], io["answer_atts"]))
    n = len(io["question_ids"])
    return QuestionBatch(
        pictures_ICHW=io["image"],
        texts=packed(io["question_ids"], io["question_atts"]),
        picture_of_question_Q=torch.arange(n),
        answers=answers,
        next_N=answers.following(SEP),
        question_of_answer_A=torch.arange(n).repeat_interleave(io["answers_per_question"]),
        weight_A=io["answer_weights"],
    )


def candidates_of(io: dict[str, Tensor]) -> Candidates:
    tokens = [tuple(row) for row in words_of(io["candidate_ids"], io["candidate_atts"])]
    return Candidates(tuple(map(str, range(len(tokens)))), tuple(tokens), SEP)


@pytest.mark.parametrize("compat", ["none", "official"])
def test_the_loss_of_the_task_is_the_recorded_one(case: TaskCase, compat: str) -> None:
    losses = task(compat).losses(case.model, batch_of(case.io), MOMENT)
    case.equal("loss", losses.parts["answer"])


def test_its_gradient_is_that_of_padded_texts_and_of_ends_that_are_read(case: TaskCase) -> None:
    """The released arrangement in plain PyTorch: rows with padding, labels shifted by one."""
    io, model = case.io, case.model
    assert isinstance(model, VQA)
    task().losses(model, batch_of(io), MOMENT).parts["answer"].backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    n = len(io["question_ids"])
    states = model.read(
        io["image"], packed(io["question_ids"], io["question_atts"]), torch.arange(n)
    )
    of_answer = torch.arange(n).repeat_interleave(io["answers_per_question"])
    total = torch.zeros(())
    for row, (ids, mask) in enumerate(zip(io["answer_ids"], io["answer_atts"], strict=True)):
        text = ids[: int(mask.sum())]
        logits = model.answer_logits(
            states, PackedTexts.from_lists([text.tolist()]), of_answer[row : row + 1]
        )
        cost = F.cross_entropy(logits[:-1], text[1:], reduction="sum")
        total = total + io["answer_weights"][row] * cost
    (total / n).backward()
    seen = 0
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        if not name.endswith(".key.bias"):  # of no influence: softmax is blind to it
            assert_close(f"grad_{name}", ours[name], p.grad)
            seen += 1
    assert seen > 100


@pytest.mark.parametrize("k", [1, 4, 12])
def test_the_released_ranking_in_plain_pytorch(case: TaskCase, k: int) -> None:
    io, model = case.io, case.model
    assert isinstance(model, VQA)
    n = len(io["question_ids"])
    with torch.no_grad():
        states = model.read(
            io["image"], packed(io["question_ids"], io["question_atts"]), torch.arange(n)
        )
        candidates = candidates_of(io)
        found = rank_answers(model, states, candidates, scheme="released", k=k)
        first = first_words(model, states, candidates).exp()
        case.equal("first_token_probs", first)
        probability, best = io["first_token_probs"].topk(k, dim=1)
        for question in range(n):
            scores = []
            for column in range(k):
                text = [*candidates.tokens[best[question, column]], SEP]
                logits = model.answer_logits(
                    states, PackedTexts.from_lists([text]), torch.tensor([question])
                )
                cost = F.cross_entropy(logits[:-1], torch.tensor(text[1:]), reduction="sum")
                scores.append(probability[question, column].log() - cost)
            ranked, order = torch.stack(scores).softmax(0).sort(descending=True)
            assert_close("probabilities", found.probability_QK[question], ranked)
            assert found.answer_QK[question].tolist() == best[question][order].tolist()
    if k == 4:
        case.equal("topk_ids_k4", found.answer_QK)
        case.equal("topk_probs_k4", found.probability_QK)


def test_official_weights_through_our_folder_and_back(
    case: TaskCase, golden: Path, tmp_path: Path
) -> None:
    model = case.model
    info = ModelInfo(task="vqa", max_words=30, max_tokens=40, config=model.config)
    save_model_folder(tmp_path, model, TOKENIZER, info)
    again = load_model_folder(tmp_path).model
    assert isinstance(again, VQA)
    case.equal("loss", task().losses(again, batch_of(case.io), MOMENT).parts["answer"])
    released = load_file(golden / "vqa" / "weights.safetensors")
    official = to_official(again.state_dict(), again.config)
    assert official.keys() == released.keys()
    for key, value in released.items():
        assert torch.equal(official[key], value), key


def test_fine_tuning_from_the_recorded_pretraining_starts_as_the_record_says(
    golden: Path, tmp_path: Path
) -> None:
    """The official file, and the same by way of our folder."""
    told = TaskCase.read(golden / "vqa").meta["config"]
    pretraining = golden / "pretrain_image"
    source = pretraining / "weights.safetensors"
    plain_told = TaskCase.read(pretraining).meta["config"]
    assert plain_told["bert"]["fusion_layer"] == told["bert"]["fusion_layer"]
    plain = build_model(shape_of_case("pretrain_image", plain_told))
    start_from_checkpoint(plain, source)
    info = ModelInfo(task="pretrain", max_words=30, max_tokens=40, config=plain.config)
    save_model_folder(tmp_path, plain, TOKENIZER, info)
    models = []
    for place in (source, tmp_path):
        torch.manual_seed(3)
        models.append(build_model(shape_of_case("vqa", told)))
        start_from_checkpoint(models[-1], place)
    one, other = (model.state_dict() for model in models)
    assert all(torch.equal(one[key], other[key]) for key in one)
    released, official = load_file(source), to_official(other, models[1].config)
    fusion, layers = told["bert"]["fusion_layer"], told["decoder"]["num_hidden_layers"]
    fresh = 0
    for key, value in official.items():
        if not key.startswith("text_decoder."):
            continue
        theirs = key.replace("text_decoder.", "text_encoder.")
        for layer in reversed(range(layers)):
            theirs = theirs.replace(f".layer.{layer}.", f".layer.{layer + fusion}.")
        looks_elsewhere = ".crossattention.self.key" in key or ".crossattention.self.value" in key
        if looks_elsewhere:
            fresh += 1
            assert not torch.equal(value, released[theirs])
        else:
            assert torch.equal(value, released[theirs]), key
    assert fresh == len(models[1].larger_lr_names) == 4 * layers
