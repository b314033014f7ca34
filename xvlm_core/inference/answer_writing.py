"""Answers written word by word, without a list to choose from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.text import TextStates
from xvlm_core.models.vqa import VQA

MAX_WORDS = 10
"""Tokens of an answer after which it ends, whatever comes; those of VQA v2 have one to five."""


@dataclass(frozen=True)
class Written:
    """An answer.

    Attributes:
        text: may be empty.
        probability: of all of its tokens, the end included if it came to it.
        is_whole: whether it came to its end.
    """

    text: str
    probability: float
    is_whole: bool


def write_answers(
    model: VQA, questions: TextStates, tokenizer: Tokenizer, max_tokens: int = MAX_WORDS
) -> list[Written]:
    """The answer to each question: always the most probable next token, up to the end (SEP).

    Args:
        model: in evaluation mode.
        questions: what ``model.read`` gave.
        tokenizer: of the model.
        max_tokens: at most so many, the end not counted.
    """
    n, device = questions.packing.n_texts, questions.hidden_ND.device
    texts = [[tokenizer.cls_id] for _ in range(n)]
    sums = [0.0] * n
    is_open = list(range(n))
    longest = min(max_tokens + 1, model.config.text.max_positions)
    for length in range(1, longest + 1):
        if not is_open:
            break
        rows = PackedTexts.from_lists([texts[q] for q in is_open]).to(device)
        own = torch.tensor(is_open, device=device)
        states = model.answer_states(questions, rows, own)
        ends = rows.packing.first_tokens(device) + length - 1
        logits_QV = model.decoder.predict_tokens(states.hidden_ND[ends])
        best = logits_QV.log_softmax(-1).max(-1)
        still_open = []
        for q, token, value in zip(
            is_open, best.indices.tolist(), best.values.tolist(), strict=True
        ):
            is_end = token == tokenizer.sep_id
            if is_end or length < longest:  # after the last word nothing but the end
                sums[q] += value
                texts[q].append(token)
            if not is_end:
                still_open.append(q)
        is_open = still_open
    cut_off = set(is_open)
    return [
        # a text may begin with the inner part of a word
        Written(tokenizer.decode(text).removeprefix("##"), math.exp(total), q not in cut_off)
        for q, (text, total) in enumerate(zip(texts, sums, strict=True))
    ]
