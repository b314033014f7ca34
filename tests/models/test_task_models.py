"""NLVR2, VQA and captioning: against references, and what each token may see."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertLMHeadModel

from tests.models.shapes import VOCABULARY, bench_config
from xvlm_core.models.build import build_model
from xvlm_core.models.captioner import Captioner
from xvlm_core.models.nlvr2 import NLVR2
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.sizes import ModelConfig
from xvlm_core.models.text import TextStates, Views
from xvlm_core.models.vqa import VQA
from xvlm_core.models.xvlm import XVLM
from xvlm_core.weights.official_names import bert_name

TEXTS = [[2, 7, 9, 11], [2, 5], [2, 8, 8, 30, 31, 32], [2, 17, 5]]


def made(config: ModelConfig) -> XVLM:
    torch.manual_seed(0)
    model = build_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
            elif parameter.ndim:
                one = "norm" in name and name.endswith("weight")
                parameter.normal_(1.0 if one else 0.0, 0.2)
    return model


def changed(config: ModelConfig, **parts: object) -> ModelConfig:
    tree = config.model_dump()
    text = parts.pop("text", {})
    tree["text"] = {**tree["text"], **text}  # type: ignore[dict-item]
    return ModelConfig.model_validate({**tree, **parts})


@pytest.fixture
def nlvr2() -> NLVR2:
    heads = ("statement", "pair_assignment")
    shape = changed(bench_config(num_layers=6), text={"pictures": 2}, heads=heads)
    model = made(shape)
    assert isinstance(model, NLVR2)
    return model


@pytest.fixture
def vqa() -> VQA:
    model = made(changed(bench_config(), heads=(), decoder_layers=2))
    assert isinstance(model, VQA)
    return model


@pytest.fixture
def captioner() -> Captioner:
    model = made(changed(bench_config(), text={"causal": True}, heads=("masked_lm",)))
    assert isinstance(model, Captioner)
    return model


def pictures(n: int) -> Tensor:
    return torch.randn(n, 3, 128, 128, generator=torch.Generator().manual_seed(1))


def row(out_NX: Tensor, texts: PackedTexts, b: int) -> Tensor:
    start = texts.packing.starts[b]
    return out_NX[start : start + texts.packing.lengths[b]]


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-4 * max(1.0, other.abs().max().item()))


# ---------------------------------------------------------------- two pictures


def attend(layer: nn.Module, own: nn.Module, x_LD: Tensor, source_KS: Tensor) -> Tensor:
    """Attention written out; ``own`` projects the keys and values."""

    def heads(x: Tensor) -> Tensor:
        return x.view(len(x), 4, -1).transpose(0, 1)

    q, k, v = heads(layer.query(x_LD)), heads(own.key(source_KS)), heads(own.value(source_KS))
    weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
    out: Tensor = layer.output((weights @ v).transpose(0, 1).reshape(len(x_LD), -1))
    return out


def test_each_pair_of_layers_looks_at_the_two_pictures_with_the_keys_of_its_first(
    nlvr2: NLVR2,
) -> None:
    texts, images = PackedTexts.from_lists(TEXTS), pictures(5)
    first, second = torch.tensor([0, 1, 2, 2]), torch.tensor([3, 0, 4, 2])
    with torch.no_grad():
        got = nlvr2.read(images, texts, first, second)
        patches = nlvr2.encode_pictures(images)
        sequences = torch.cat([patches.mean(1, keepdim=True), patches], 1)
        states = nlvr2.encode_texts(texts)
        for b in range(len(TEXTS)):
            x = row(states.hidden_ND, texts, b)
            for number, layer in enumerate(list(nlvr2.text.layers)[2:]):
                picture = (first, second)[number % 2][b]
                owner = nlvr2.text.layers[2 + number - number % 2].cross_attention
                x = layer.self_norm(x + attend(layer.self_attention, layer.self_attention, x, x))
                crossed = attend(layer.cross_attention, owner, x, sequences[picture])
                x = layer.cross_norm(x + crossed)
                x = layer.mlp_norm(x + layer.mlp(x))
            assert close(row(got.hidden_ND, texts, b), x), b


def test_shared_keys_are_stored_once_and_learn_from_both_pictures(nlvr2: NLVR2) -> None:
    names = [n for n in nlvr2.state_dict() if "cross_attention.key" in n]
    parts = ("weight", "bias")
    assert names == [f"text.layers.{n}.cross_attention.key.{p}" for n in (2, 4) for p in parts]
    assert len(list(nlvr2.parameters())) == len(nlvr2.state_dict())
    texts, rows = PackedTexts.from_lists(TEXTS), torch.arange(4)
    with torch.no_grad():
        patches = nlvr2.encode_pictures(pictures(8))

        def statement(model: NLVR2) -> Tensor:
            states = model.look(model.encode_texts(texts), patches, rows, rows + 4)
            return model.statement_logits(states.first())

        before = statement(nlvr2)
        twin = copy.deepcopy(nlvr2)
        twin.text.layers[2].cross_attention.key.weight.neg_()
        assert not close(statement(twin), before)
        assert torch.equal(statement(nlvr2), before), "a copy has weights of its own"
    # the second layer of a pair alone: without it the shared keys would see the first only
    weight = nlvr2.text.layers[2].cross_attention.key.weight
    source = nlvr2.text.layers[3].cross_attention
    hidden = torch.randn(texts.packing.n_tokens, 48)
    out = source.over_pictures(hidden, texts.packing, patches, Views(rows), rows)
    out.sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


def test_activation_checkpointing_gives_the_same_gradients_to_shared_keys(nlvr2: NLVR2) -> None:
    def gradients() -> dict[str, Tensor]:
        nlvr2.zero_grad()
        texts, rows = PackedTexts.from_lists(TEXTS), torch.arange(4)
        states = nlvr2.train().read(pictures(8), texts, rows, rows + 4)
        nlvr2.statement_logits(states.first()).square().sum().backward()
        return {n: p.grad for n, p in nlvr2.named_parameters() if p.grad is not None}

    plain = gradients()
    assert {n for n, _ in nlvr2.named_parameters()} - set(plain) == {
        f"{head}.{part}" for head in ("ta_head", "vision_proj") for part in ("weight", "bias")
    }
    nlvr2.checkpoint_activations()
    again = gradients()
    assert all(torch.equal(value, again[name]) for name, value in plain.items())


def test_the_order_of_the_pictures_matters_and_the_batch_does_not(nlvr2: NLVR2) -> None:
    texts, rows, images = PackedTexts.from_lists(TEXTS), torch.arange(4), pictures(8)
    with torch.no_grad():
        patches, states = nlvr2.encode_pictures(images), nlvr2.encode_texts(texts)
        shown = nlvr2.look(states, patches, rows, rows + 4).first()
        swapped = nlvr2.look(states, patches, rows + 4, rows).first()
        assert not close(shown, swapped)
        assert nlvr2.statement_logits(shown).shape == (4, 2)
        assert nlvr2.assignment_logits(shown).shape == (4, 3)
        looks = nlvr2.looks(patches)
        assert torch.allclose(looks.norm(dim=1), torch.ones(8))
        alone = nlvr2.read(
            images[[2, 6]],
            PackedTexts.from_lists(TEXTS[2:3]),
            torch.tensor([0]),
            torch.tensor([1]),
        )
        assert close(alone.first()[0], shown[2])


# ---------------------------------------------------------------- answers


def reference_decoder(model: VQA) -> BertLMHeadModel:
    text = model.config.text
    reference = BertLMHeadModel(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=text.hidden_size,
            num_hidden_layers=model.config.decoder_layers,
            num_attention_heads=text.num_heads,
            intermediate_size=text.intermediate_size,
            max_position_embeddings=text.max_positions,
            hidden_act="gelu",
            layer_norm_eps=text.layer_norm_eps,
            is_decoder=True,
            add_cross_attention=True,
            use_cache=False,
        )
    ).eval()
    names = {f"decoder.{n}": bert_name(n) for n in model.decoder.state_dict()}
    state = {official: model.state_dict()[ours] for ours, official in names.items() if official}
    assert len(state) == len(names)
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("decoder." in name or "position_ids" in name for name in missing)
    reference.tie_weights()
    return reference


def test_the_decoder_of_answers_equals_transformers_bert(vqa: VQA) -> None:
    questions = PackedTexts.from_lists([[2, 9, 9, 12, 40], [2, 5, 6]])
    of_answer = torch.tensor([1, 0, 0, 1])
    answers = PackedTexts.from_lists(TEXTS)
    reference = reference_decoder(vqa)
    with torch.no_grad():
        states = vqa.read(pictures(2), questions, torch.tensor([1, 0]))
        got = vqa.answer_logits(states, answers, of_answer)
        for b, text in enumerate(TEXTS):
            expected = reference(
                input_ids=torch.tensor([text]),
                encoder_hidden_states=row(states.hidden_ND, questions, int(of_answer[b]))[None],
            ).logits[0]
            assert close(row(got, answers, b), expected), b


def test_an_answer_depends_on_its_picture_and_on_its_own_question_alone(vqa: VQA) -> None:
    answers, of_answer = PackedTexts.from_lists(TEXTS), torch.tensor([0, 0, 1, 1])
    images = pictures(2)

    def logits(questions: list[list[int]], of_question: list[int]) -> Tensor:
        texts = PackedTexts.from_lists(questions)
        with torch.no_grad():
            states = vqa.read(images, texts, torch.tensor(of_question))
            return vqa.answer_logits(states, answers, of_answer)

    before = logits([[2, 9, 12], [2, 5, 6]], [0, 1])
    longer = logits([[2, 9, 12], [2, 5, 6, 7, 8, 9, 10, 11]], [0, 1])
    other = logits([[2, 9, 12], [2, 5, 6]], [1, 1])
    for b, question in enumerate(of_answer.tolist()):
        same_question = close(row(longer, answers, b), row(before, answers, b))
        assert same_question == (question == 0)
        assert close(row(other, answers, b), row(before, answers, b)) == (question == 1)


# ---------------------------------------------------------------- captions


@pytest.mark.parametrize("kind", ["vqa", "captioner"])
def test_a_token_sees_the_tokens_before_it_only(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    images = pictures(1)

    def logits(text: list[int]) -> Tensor:
        texts, zero = PackedTexts.from_lists([text]), torch.tensor([0])
        with torch.no_grad():
            if isinstance(model, Captioner):
                return model.caption_logits(model.encode_pictures(images), texts, zero)
            question = model.read(images, PackedTexts.from_lists([[2, 9]]), zero)
            return model.answer_logits(question, texts, zero)

    whole = logits([2, 7, 9, 11, 30])
    for length in range(1, 5):
        assert close(logits([2, 7, 9, 11, 30][:length]), whole[:length])
    assert not close(logits([2, 8, 9, 11, 30])[1:], whole[1:])


def test_a_captioner_is_the_stack_of_pretraining(captioner: Captioner) -> None:
    """One token sees itself either way: there both give the same scores."""
    plain = XVLM(changed(bench_config(), heads=("masked_lm",))).eval()
    plain.load_state_dict(captioner.state_dict())
    text, zero = PackedTexts.from_lists([[2]]), torch.tensor([0])
    with torch.no_grad():
        patches = plain.encode_pictures(pictures(1))
        states: TextStates = plain.fuse(plain.encode_texts(text), patches, plain.whole(1), zero)
        expected = plain.text.predict_tokens(states.hidden_ND)
        assert close(captioner.caption_logits(patches, text, zero), expected)


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"text": {"pictures": 2, "causal": True}}, "only one is known"),
        ({"text": {"causal": True}, "decoder_layers": 2}, "only one is known"),
        ({"heads": ("statement",)}, "needs text.pictures=2"),
        ({"text": {"causal": True}, "heads": ("box",)}, "needs the head masked_lm"),
        ({"text": {"pictures": 2, "num_layers": 5}}, "must be even"),
    ],
)
def test_shapes_that_are_no_model_are_refused(parts: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(bench_config(), **parts)


def test_fresh_weights_are_drawn_as_in_the_rest_of_the_model() -> None:
    torch.manual_seed(0)
    vqa = build_model(changed(bench_config(), heads=(), decoder_layers=2))
    weights = torch.cat(
        [m.weight.flatten() for m in vqa.decoder.modules() if isinstance(m, nn.Linear)]
    )
    assert weights.std().item() == pytest.approx(0.02, rel=0.05)
    shape = changed(bench_config(), text={"pictures": 2, "init": "xavier"}, heads=("statement",))
    head = build_model(shape).cls_head[0]
    assert not head.bias.any()
    assert head.weight.abs().max() <= math.sqrt(6 / sum(head.weight.shape))
