"""The packed text stack against transformers' BERT, and packing itself."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.shapes import VOCABULARY, bench_config
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.sizes import TextConfig
from xvlm_core.models.text import TextEncoder, Views

lengths_lists = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def numbered(lengths: Sequence[int]) -> list[list[int]]:
    return [[100 * b + i for i in range(n)] for b, n in enumerate(lengths)]


@settings(max_examples=50, deadline=None)
@given(lengths_lists)
def test_packing_keeps_every_token_once_and_groups_hold_equal_lengths(lengths: list[int]) -> None:
    texts = PackedTexts.from_lists(numbered(lengths))
    packing = texts.packing
    assert sorted(texts.ids_N.tolist()) == sorted(
        token for text in numbered(lengths) for token in text
    )
    assert sum(g.rows * g.length for g in packing.groups) == packing.n_tokens == sum(lengths)
    assert [g.start for g in packing.groups[1:]] == [g.stop for g in packing.groups[:-1]]
    for b, start in enumerate(packing.starts):
        assert texts.ids_N[start : start + lengths[b]].tolist() == numbered(lengths)[b]
    assert texts.ids_N[packing.first_tokens("cpu")].tolist() == [
        100 * b for b in range(len(lengths))
    ]
    assert (packing.positions("cpu") == texts.ids_N % 100).all()


@settings(max_examples=50, deadline=None)
@given(lengths_lists, lengths_lists, st.data())
def test_select_and_join_move_whole_texts(
    one: list[int], two: list[int], data: st.DataObject
) -> None:
    texts = PackedTexts.from_lists(numbered(one))
    chosen = data.draw(st.lists(st.integers(0, len(one) - 1), min_size=1, max_size=9))
    packing, index = texts.packing.select(chosen)
    moved = texts.ids_N[index]
    for row, b in enumerate(chosen):
        start = packing.starts[row]
        assert moved[start : start + packing.lengths[row]].tolist() == numbered(one)[b]
    joined = texts.join(PackedTexts.from_lists(numbered(two)))
    expected = numbered(one) + numbered(two)
    for b, text in enumerate(expected):
        start = joined.packing.starts[b]
        assert joined.ids_N[start : start + len(text)].tolist() == text


def reference_bert(config: TextConfig, encoder: TextEncoder) -> torch.nn.Module:
    """transformers' BERT with the weights of our text layers."""
    transformers = pytest.importorskip("transformers")
    bert = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.fusion_layer,
            num_attention_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_positions,
            layer_norm_eps=config.layer_norm_eps,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    ).eval()
    own = encoder.state_dict()
    state = {}
    for ours, theirs in (
        ("embeddings.word", "embeddings.word_embeddings"),
        ("embeddings.position", "embeddings.position_embeddings"),
        ("embeddings.token_type", "embeddings.token_type_embeddings"),
        ("embeddings.norm", "embeddings.LayerNorm"),
    ):
        for part in ("weight", "bias"):
            if f"{ours}.{part}" in own:
                state[f"{theirs}.{part}"] = own[f"{ours}.{part}"]
    for index in range(config.fusion_layer):
        for ours, theirs in (
            ("self_attention.query", "attention.self.query"),
            ("self_attention.key", "attention.self.key"),
            ("self_attention.value", "attention.self.value"),
            ("self_attention.output", "attention.output.dense"),
            ("self_norm", "attention.output.LayerNorm"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
            ("mlp_norm", "output.LayerNorm"),
        ):
            for part in ("weight", "bias"):
                state[f"encoder.layer.{index}.{theirs}.{part}"] = own[
                    f"layers.{index}.{ours}.{part}"
                ]
    missing, unexpected = bert.load_state_dict(state, strict=False)
    assert not [name for name in missing if "position_ids" not in name]
    assert not unexpected
    return bert


def test_text_layers_equal_transformers_bert() -> None:
    config = bench_config().text
    torch.manual_seed(0)
    encoder = TextEncoder(config, 32, with_lm_head=False).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    bert = reference_bert(config, encoder)
    texts = [[2, 7, 9], [2, 5, 6, 7, 8, 9, 11], [2, 199], [2, 8, 8]]
    with torch.no_grad():
        states = encoder.encode(PackedTexts.from_lists(texts))
        for b, text in enumerate(texts):
            expected = bert(input_ids=torch.tensor([text])).last_hidden_state[0]
            start = states.packing.starts[b]
            got = states.hidden_ND[start : start + len(text)]
            assert torch.allclose(got, expected, atol=2e-5), b


def test_views_pool_the_mean_of_their_patches() -> None:
    patches = torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 1], [0, 1, 0, 0]]).bool()
    pooled = Views(torch.tensor([1, 0, 1]), mask).pool(patches)
    assert torch.allclose(pooled[0], (patches[1, 0] + patches[1, 3]) / 2)
    assert torch.allclose(pooled[1], patches[0].mean(0), atol=1e-6)
    assert torch.allclose(pooled[2], patches[1, 1])


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_hidden_patch_has_no_influence(norm_first: bool) -> None:
    config = bench_config(norm_first=norm_first).text
    torch.manual_seed(0)
    encoder = TextEncoder(config, 8, with_lm_head=False).eval()
    states = encoder.encode(PackedTexts.from_lists([[2, 7, 9], [2, 5]]))
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]]).bool()
    views = Views(torch.tensor([0, 0]), mask)
    patches = torch.randn(1, 4, 8)
    changed = patches.clone()
    changed[0, 1] += 5
    which = torch.tensor([0, 1])
    with torch.no_grad():
        before = encoder.fuse(states, patches, views, which).first()
        after = encoder.fuse(states, changed, views, which).first()
    assert torch.allclose(before[0], after[0], atol=1e-6)
    assert not torch.allclose(before[1], after[1], atol=1e-3)


def test_vocabulary_scores_use_the_word_embeddings() -> None:
    config = bench_config().text
    encoder = TextEncoder(config, 8, with_lm_head=True).eval()
    hidden = torch.randn(3, config.hidden_size)
    before = encoder.predict_tokens(hidden)
    assert before.shape == (3, VOCABULARY)
    with torch.no_grad():
        # one number of it: the last norm leaves a mean of 0, to which equal ones add nothing
        encoder.embeddings.word.weight[17, 0] += 1
    after = encoder.predict_tokens(hidden)
    assert (after[:, 17] != before[:, 17]).all()
    assert torch.equal(after[:, 18], before[:, 18])
