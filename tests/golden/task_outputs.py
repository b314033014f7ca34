"""What the task models compute, under the names of the recorded cases.

Losses and searches stand here in plain PyTorch: what is compared is the models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden.case import packed, padded
from tests.golden.step import Reproduced
from tests.golden.task_case import TaskCase
from xvlm_core.inference.answer_ranking import Candidates, first_words, rank_answers
from xvlm_core.models.captioner import Captioner
from xvlm_core.models.nlvr2 import NLVR2
from xvlm_core.models.packing import PackedTexts, Packing
from xvlm_core.models.text import TextStates
from xvlm_core.models.vqa import VQA
from xvlm_core.objectives.answer_generation import (
    NOTHING,
    answer_generation_loss,
    answer_losses,
)

SEP = 3
PROMPT = 4
INPUTS = {
    "nlvr": {"images", "text_ids", "text_atts", "targets"},
    "nlvr_pretrain": {
        "image",
        "text_ids",
        "text_atts",
        "first_image_idx",
        "second_image_idx",
        "labels",
    },
    "vqa": {
        "image",
        "question_ids",
        "question_atts",
        "answer_ids",
        "answer_atts",
        "answers_per_question",
        "answer_weights",
        "candidate_ids",
        "candidate_atts",
    },
    "caption": {
        "image",
        "caption_ids",
        "caption_atts",
        "caption_targets",
        "prompt_ids",
        "sampled_ids",
        "smoothing_logits",
        "smoothing_labels",
    },
}
# searches and losses, which are not the model's: they have recorded cases of their own
ELSEWHERE = {
    "caption": {
        "beam3_ids",
        "beam3_scores",
        "beam3_all_ids",
        "beam3_all_scores",
        "smoothing_loss",
    }
}


def unpacked(rows_NX: Tensor, packing: Packing, length: int) -> Tensor:
    """``(B, length, X)``, zeros where the recorded run computed padding."""
    return padded(TextStates(rows_NX, packing), length)


def with_pooled(patches_IPS: Tensor) -> Tensor:
    return torch.cat([patches_IPS.mean(1, keepdim=True), patches_IPS], dim=1)


def nlvr(case: TaskCase) -> dict[str, Reproduced]:
    io, model = case.io, case.model
    assert isinstance(model, NLVR2)
    n, length = io["text_ids"].shape
    texts, rows = packed(io["text_ids"], io["text_atts"]), torch.arange(n)
    states = model.read(io["images"], texts, rows, rows + n)
    logits = model.statement_logits(states.first())
    return {
        "image_embeds": Reproduced(with_pooled(model.encode_pictures(io["images"]))),
        "last_hidden": Reproduced(padded(states, length), io["text_atts"].bool()),
        "logits": Reproduced(logits),
        "loss": Reproduced(F.cross_entropy(logits, io["targets"])),
    }


def nlvr_pretrain(case: TaskCase) -> dict[str, Reproduced]:
    io, model = case.io, case.model
    assert isinstance(model, NLVR2)
    texts = packed(io["text_ids"], io["text_atts"])
    patches = model.encode_pictures(io["image"])
    looks = model.looks(patches)
    weights = (looks @ looks.T / 0.07).softmax(-1)
    states = model.look(
        model.encode_texts(texts), patches, io["first_image_idx"], io["second_image_idx"]
    )
    logits = model.assignment_logits(states.first())
    return {
        "image_feat": Reproduced(looks),
        "sampling_weights": Reproduced(weights.fill_diagonal_(0)),
        "logits": Reproduced(logits),
        "loss": Reproduced(F.cross_entropy(logits, io["labels"])),
    }


def vqa(case: TaskCase) -> dict[str, Reproduced]:
    io, model = case.io, case.model
    assert isinstance(model, VQA)
    n, length = io["question_ids"].shape
    questions = model.read(
        io["image"], packed(io["question_ids"], io["question_atts"]), torch.arange(n)
    )

    ids, atts = io["answer_ids"], io["answer_atts"]
    question = torch.arange(n).repeat_interleave(io["answers_per_question"])
    answers = packed(ids, atts)
    logits_NV = model.answer_logits(questions, answers, question)
    losses = answer_losses(
        logits_NV, answers.following(NOTHING), answers.packing.text_of_token("cpu"), len(ids)
    )

    rows = packed(io["candidate_ids"], io["candidate_atts"] - _last(io["candidate_atts"]))
    starts, lengths = rows.packing.starts, rows.packing.lengths
    candidates = Candidates(
        tuple(map(str, range(len(starts)))),
        tuple(
            tuple(rows.ids_N[at : at + n].tolist()) for at, n in zip(starts, lengths, strict=True)
        ),
        SEP,
    )
    ranking = rank_answers(model, questions, candidates, scheme="released", k=4)
    return {
        "question_states": Reproduced(padded(questions, length), io["question_atts"].bool()),
        "decoder_logits": Reproduced(
            unpacked(logits_NV, answers.packing, ids.shape[1]), atts.bool()
        ),
        "answer_losses": Reproduced(losses),
        "loss": Reproduced(answer_generation_loss(losses, io["answer_weights"], n)),
        "first_token_probs": Reproduced(first_words(model, questions, candidates).exp()),
        "topk_ids_k4": Reproduced(ranking.answer_QK),
        "topk_probs_k4": Reproduced(ranking.probability_QK),
    }


def _last(atts: Tensor) -> Tensor:
    """1 at the last real token of each row (SEP), else 0."""
    return F.one_hot(atts.sum(1) - 1, atts.shape[1])


@dataclass(frozen=True)
class Greedy:
    ids: Tensor
    mean_logprob: Tensor


def greedy(
    next_logits: Callable[[list[list[int]]], Tensor], prompts: list[list[int]], longest: int
) -> Greedy:
    """Word by word; the last token is SEP where none came before."""
    texts, sums = [list(prompt) for prompt in prompts], torch.zeros(len(prompts))
    is_open = [True] * len(prompts)
    counts = torch.zeros(len(prompts))
    for length in range(len(prompts[0]), longest):
        logprobs = next_logits(texts).log_softmax(-1)
        for b, text in enumerate(texts):
            if not is_open[b]:
                continue
            token = int(logprobs[b].argmax())
            sums[b] += logprobs[b, token]
            counts[b] += 1
            text.append(SEP if length == longest - 1 else token)
            is_open[b] = token != SEP
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    return Greedy(ids, sums / counts)


def caption(case: TaskCase) -> dict[str, Reproduced]:
    io, model = case.io, case.model
    assert isinstance(model, Captioner)
    ids, atts = io["caption_ids"], io["caption_atts"]
    n, length = ids.shape
    patches, every = model.encode_pictures(io["image"]), torch.arange(n)

    def logits_of(texts: PackedTexts) -> Tensor:
        return model.caption_logits(patches, texts, every)

    texts = packed(ids, atts)
    logits = unpacked(logits_of(texts), texts.packing, length)
    logprobs = logits.log_softmax(-1)
    of_next = logprobs[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    labels = io["caption_targets"][:, 1:]
    is_learnt = labels != -100
    target = -logprobs[:, :-1].gather(2, labels.clamp(min=0)[..., None])[..., 0][is_learnt]
    every_class = -logprobs[:, :-1].sum(-1)[is_learnt]
    share = case.meta["config"]["label_smoothing"] / logits.shape[-1]
    kept = 1 - case.meta["config"]["label_smoothing"]
    smoothed = kept * target + share * (every_class - target)

    def last_logits(rows: list[list[int]]) -> Tensor:
        packed_rows = PackedTexts.from_lists(rows)
        out = logits_of(packed_rows)
        ends = [s + len(r) - 1 for s, r in zip(packed_rows.packing.starts, rows, strict=True)]
        return out[ends]

    found = greedy(last_logits, io["prompt_ids"].tolist(), io["greedy_ids"].shape[1])
    sampled = io["sampled_ids"]
    paths = PackedTexts.from_lists([row[: int((row != 0).sum())].tolist() for row in sampled])
    path = unpacked(logits_of(paths), paths.packing, sampled.shape[1]).log_softmax(-1)
    of_path = path[:, :-1].gather(2, sampled[:, 1:, None])[..., 0][:, PROMPT - 1 :]
    drawn = sampled[:, PROMPT:] != 0
    # a path that reaches the end has SEP in the place of the last word it drew, which is lost
    is_whole = ~drawn[:, -1]
    assert is_whole.any()
    return {
        "decoder_logits": Reproduced(logits, atts.bool()),
        "token_logprobs": Reproduced(of_next, atts[:, 1:].bool()),
        "loss": Reproduced(smoothed.mean()),
        "loss_without_smoothing": Reproduced(target.mean()),
        "greedy_ids": Reproduced(found.ids),
        "greedy_mean_logprob": Reproduced(found.mean_logprob),
        "sampled_mean_logprob": Reproduced((of_path * drawn).sum(1) / drawn.sum(1), is_whole),
    }


REPRODUCE: dict[str, Callable[[TaskCase], dict[str, Reproduced]]] = {
    "nlvr": nlvr,
    "nlvr_pretrain": nlvr_pretrain,
    "vqa": vqa,
    "caption": caption,
}
