"""What the task models compute, under the names of the recorded cases.

Losses, rankings and searches are those that the tasks use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden.case import packed, padded
from tests.golden.step import Reproduced
from tests.golden.task_case import TaskCase
from xvlm_core.inference.answer_ranking import Candidates, first_words, rank_answers
from xvlm_core.inference.generate import Lengths, Written, beam_search, greedy
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
from xvlm_core.objectives.language_modeling import (
    language_modeling_loss,
    next_tokens,
    token_log_probabilities,
)
from xvlm_core.objectives.self_critical import mean_log_probabilities

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


def caption(case: TaskCase) -> dict[str, Reproduced]:
    io, model = case.io, case.model
    assert isinstance(model, Captioner)
    ids, atts = io["caption_ids"], io["caption_atts"]
    n, length = ids.shape
    patches, every = model.encode_pictures(io["image"]), torch.arange(n)
    texts = packed(ids, atts)
    logits_NV = model.caption_logits(patches, texts, every)
    learnt = next_tokens(texts, PROMPT)
    assert sorted(learnt.label_M.tolist()) == sorted(
        io["caption_targets"][io["caption_targets"] != -100].tolist()
    )
    logits_MV = logits_NV[learnt.place_M]
    smoothing = case.meta["config"]["label_smoothing"]
    logits = unpacked(logits_NV, texts.packing, length)
    of_next = logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]

    speaker, rules = model.speaker(patches), case.meta["config"]["generation"]
    prompt = io["prompt_ids"][0].tolist()
    lengths = Lengths(SEP, rules["max_length"], rules["min_length"])
    found = greedy(speaker, prompt, lengths)
    beams = beam_search(speaker, prompt, lengths, rules["num_beams"])
    best, each = [row[0] for row in beams], [one for row in beams for one in row]

    sampled = io["sampled_ids"]
    paths = PackedTexts.from_lists([row[: int((row != 0).sum())].tolist() for row in sampled])
    drawn = next_tokens(paths, PROMPT)
    path_MV = model.caption_logits(patches, paths, every)[drawn.place_M]
    mean_logprobs = mean_log_probabilities(
        token_log_probabilities(path_MV, drawn.label_M), drawn.text_M, n
    )
    # a path that reaches the end has SEP in the place of the last word it drew, which is lost
    is_whole = sampled[:, -1] == 0
    assert is_whole.any()
    return {
        "decoder_logits": Reproduced(logits, atts.bool()),
        "token_logprobs": Reproduced(of_next, atts[:, 1:].bool()),
        "loss": Reproduced(language_modeling_loss(logits_MV, learnt.label_M, smoothing)),
        "loss_without_smoothing": Reproduced(language_modeling_loss(logits_MV, learnt.label_M)),
        "greedy_ids": Reproduced(rows_of(found, io["greedy_ids"].shape[1])),
        "greedy_mean_logprob": Reproduced(torch.tensor([one.score for one in found])),
        "beam3_ids": Reproduced(rows_of(best)),
        "beam3_scores": Reproduced(torch.tensor([one.score for one in best])),
        "beam3_all_ids": Reproduced(rows_of(each)),
        "beam3_all_scores": Reproduced(torch.tensor([one.score for one in each])),
        "sampled_mean_logprob": Reproduced(mean_logprobs, is_whole),
        "smoothing_loss": Reproduced(smoothing_example(io, smoothing)),
    }


def rows_of(texts: Sequence[Written], length: int | None = None) -> Tensor:
    """Ids, padded with 0 to a length, or to the longest."""
    longest = length or max(len(one.ids) for one in texts)
    return torch.tensor([[*one.ids, *[0] * (longest - len(one.ids))] for one in texts])


def smoothing_example(io: dict[str, Tensor], smoothing: float) -> Tensor:
    is_learnt = io["smoothing_labels"] != -100
    return language_modeling_loss(
        io["smoothing_logits"][is_learnt], io["smoothing_labels"][is_learnt], smoothing
    )


REPRODUCE: dict[str, Callable[[TaskCase], dict[str, Reproduced]]] = {
    "nlvr": nlvr,
    "nlvr_pretrain": nlvr_pretrain,
    "vqa": vqa,
    "caption": caption,
}
