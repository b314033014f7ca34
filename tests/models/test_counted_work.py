"""No floating-point operation on padding or on repeated pictures: counted, not timed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.models.shapes import VOCABULARY, bench_config, region_batch
from xvlm_core.models.xvlm import XVLM
from xvlm_core.objectives.matching import Negatives
from xvlm_core.tasks.pretrain_forward import Wanted, pretrain_forward

CONFIG = bench_config()
MODEL = XVLM(CONFIG).eval()


def counted(lengths: Sequence[int], pictures: Sequence[int], n_pictures: int) -> int:
    """Operations of the forward pass of a region step (the maths kernel is countable)."""
    batch = region_batch(lengths, pictures, n_pictures)
    n = len(lengths)
    every = torch.ones(n, dtype=torch.bool)
    after = (torch.arange(n) + 1) % n
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        pretrain_forward(MODEL, batch, Wanted(), negatives=Negatives(after, after, every, every))
    return counter.get_total_flops()


def vision_operations(n_pictures: int) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        MODEL.encode_pictures(torch.zeros(n_pictures, 3, 128, 128))
    return counter.get_total_flops()


def floor(lengths: Sequence[int], n_pictures: int) -> int:
    """The operations a region step cannot avoid, from its real tokens and pictures."""
    text, vision = CONFIG.text, CONFIG.vision
    width, inner, source = text.hidden_size, text.intermediate_size, vision.width
    patches = vision.grid**2
    n = len(lengths)
    after = [*lengths[1:], lengths[0]]

    def layer(rows: Sequence[int], *, cross: bool) -> int:
        tokens = sum(rows)
        work = 2 * tokens * (4 * width * width + 2 * width * inner)
        work += sum(4 * length * length * width for length in rows)
        if cross:
            work += 2 * tokens * 2 * width * width
            work += 2 * n_pictures * patches * 2 * source * width  # keys, values: once a picture
            work += sum(4 * length * (1 + patches) * width for length in rows)
            work += 2 * 2 * (n + n_pictures) * patches * width  # pooled key and value of a view
        return work

    encoded = [*lengths, *lengths]  # texts and masked texts
    fused = [*lengths, *lengths, *after, *lengths, *lengths]  # matched, 2 negatives, masked, box
    work = vision_operations(n_pictures)
    work += text.fusion_layer * layer(encoded, cross=False)
    work += (text.num_layers - text.fusion_layer) * layer(fused, cross=True)
    work += 2 * n * patches * source  # pooled tokens of the concepts
    work += 2 * n * CONFIG.embed_dim * source + 2 * n * CONFIG.embed_dim * width
    work += 2 * n * n * CONFIG.embed_dim  # similarities
    work += 2 * 3 * n * (2 * width * width + 2 * width * 2)  # matching head
    work += 2 * n * (2 * width * width + 2 * width * 4)  # box head
    work += 2 * n * (width * width + width * VOCABULARY)  # masked tokens only: one a text here
    return work


def test_a_region_step_does_the_unavoidable_operations_and_no_other() -> None:
    lengths, pictures = [5, 9, 3, 12, 4, 7, 6], [0, 0, 1, 1, 1, 2, 2]
    assert counted(lengths, pictures, 3) == floor(lengths, 3)


def test_operations_grow_with_real_tokens_and_not_with_the_longest_text() -> None:
    short, pictures = [4] * 7, [0, 0, 1, 1, 1, 2, 2]
    one_long = [4] * 6 + [40]
    grown = counted(one_long, pictures, 3) - counted(short, pictures, 3)
    assert grown == floor(one_long, 3) - floor(short, 3)
    padded_to_longest = counted([40] * 7, pictures, 3) - counted(short, pictures, 3)
    assert grown < padded_to_longest / 5


def test_more_texts_of_one_picture_cost_nothing_on_the_picture_side() -> None:
    few, many = [5] * 4, [5] * 12
    grown = counted(many, [0] * 12, 1) - counted(few, [0] * 4, 1)
    assert grown == floor(many, 1) - floor(few, 1)
    assert vision_operations(1) < counted(few, [0] * 4, 1)


def test_a_backward_pass_costs_at_most_twice_the_forward_pass() -> None:
    batch = region_batch([5, 9, 3, 12, 4, 7, 6], [0, 0, 1, 1, 1, 2, 2], 3)
    model = XVLM(CONFIG).train()
    every = torch.ones(7, dtype=torch.bool)
    after = (torch.arange(7) + 1) % 7
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        out = pretrain_forward(
            model, batch, Wanted(), negatives=Negatives(after, after, every, every)
        )
        forward = counter.get_total_flops()
        assert out.hidden is not None
        out.hidden.hidden_ND.sum().backward()
    assert counter.get_total_flops() <= 3 * forward
