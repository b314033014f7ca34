"""Re-ranking takes a third of the operations of the released procedure, and finds the same."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks import reranking


@pytest.fixture(scope="module")
def result() -> reranking.Result:
    return reranking.measure("tiny", 64, 16, 0)


def test_at_most_035_of_the_operations_of_the_released_procedure(result: reranking.Result) -> None:
    assert result.ratio <= reranking.GOAL == 0.35
    assert result.largest_gap < 1e-4 * result.spread < 1e-4, "the same scores"


def test_the_operations_of_the_released_procedure_are_those_of_its_products(
    result: reranking.Result,
) -> None:
    """By hand: 2 x 64 x 16 pairs of 40 tokens, 65 keys, two layers of width 64."""
    pairs, tokens, keys, width = 2 * 64 * 16, 40, 65, 64
    per_token = 4 * width**2 + 2 * tokens * width  # attention inside the text
    per_token += 2 * width**2 + 2 * keys * width  # to the picture
    per_token += 2 * 4 * width**2
    by_hand = 2 * pairs * 2 * (tokens * per_token + 2 * keys * width**2)
    head = 2 * pairs * (width * 2 * width + 2 * width * 2)
    assert math.isclose(result.official_flops, by_hand + head, rel_tol=1e-6)


def test_products_in_attention_are_counted() -> None:
    x = torch.ones(1, 2, 3, 4)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert reranking.counted(lambda: attend(x, x, x)) == 2 * 2 * (3 * 3 * 4) * 2


def test_a_document_has_the_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--size", "tiny", "--queries", "8", "--k", "2", "--turns", "1", "--json"]
    assert reranking.main(words) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["ratio"] == made["flops"] / made["official_flops"]
    assert made["wall_ratio"] > 0
