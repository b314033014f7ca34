"""Official checkpoints of every task: recognised, read, written. ``../shared`` is used if there."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from tests.golden.task_case import TASK_OF_CASE, shape_of_case
from tests.weights.official_files import official_file, our_state, task_config
from tests.weights.shapes import SHARED, assert_same_bits
from xvlm_core.errors import CheckpointError
from xvlm_core.models.build import build_model
from xvlm_core.models.sizes import ModelConfig, TextConfig, VisionConfig
from xvlm_core.weights.official import from_official, to_official
from xvlm_core.weights.official_shape import TASKS, as_task, recognise, shape_of, tasks_within

ALL = list(TASKS)
# weak grounding has the keys of retrieval
RECOGNISED = {**{task: task for task in ALL}, "weak_grounding": "retrieval"}

# ---------------------------------------------------------------- both ways


@pytest.mark.parametrize("task", ALL)
def test_the_round_trip_is_bit_for_bit_and_every_key_is_accounted_for(task):
    config = task_config(task)
    ours = our_state(config)
    official = to_official(ours, config)
    converted = from_official(official, config)
    assert_same_bits(converted.state, ours)
    assert_same_bits(to_official(converted.state, config), official)
    report = converted.report
    assert set(report.matched) == set(ours)
    assert not (report.converted)
    assert not (report.dropped)
    assert not (report.warnings)
    assert len(official) == len(ours) + len(report.computed) + len(report.tied)
    build_model(config).load_state_dict(converted.state)


@pytest.mark.parametrize("task", ALL)
def test_task_and_shape_are_read_off_the_file(task):
    official = official_file(task)
    found = recognise(official)
    assert found == RECOGNISED[task]
    shape = shape_of(official, found)
    heads = task_config(task).heads
    expected = task_config(task).model_copy(update={"heads": heads})
    if task in ("grounding", "vqa", "nlvr2", "captioning"):  # no projection says how wide it is
        expected = expected.model_copy(update={"embed_dim": 256})
    assert shape.config == expected
    assert from_official(official, shape.config).report.complete


@pytest.mark.parametrize(
    ("image", "window", "depths"), [(64, 4, (2, 2, 2)), (96, 6, (2, 2)), (48, 12, (2, 2))]
)
def test_picture_size_and_window_come_from_the_masks_and_tables(image, window, depths):
    tree = task_config("grounding").model_dump()
    tree["vision"] |= {
        "image_size": image,
        "window_size": window,
        "depths": depths,
        "num_heads": (1, 2, 2)[: len(depths)],
    }
    config = ModelConfig.model_validate(tree)
    official = to_official(our_state(config), config)
    found = shape_of(official, "grounding")
    assert (found.config.vision.image_size, found.config.vision.window_size) == (image, window)
    assert len(found.notes) == 1  # the heads of attention
    stripped = {k: v for k, v in official.items() if not k.endswith("attn_mask")}
    without = shape_of(stripped, "grounding")
    if depths == (2, 2, 2):  # the last stage is one window, as in every released model
        assert without.config == found.config
        assert "no vision_encoder.layers.0.blocks.1.attn_mask: 64 px" in without.notes[0]


@pytest.mark.parametrize("first", [1, 3])
def test_the_first_cross_layer_is_found(first):
    text = shape_of(official_file("vqa", fusion_layer=first), "vqa").config.text
    assert (text.fusion_layer, text.num_layers) == (first, 4)


def test_a_text_stack_whose_heads_no_shape_shows_is_asked_for():
    official = official_file("retrieval", hidden_size=48, num_heads=4)
    with pytest.raises(CheckpointError, match="how many heads share the width of 48") as caught:
        shape_of(official, "retrieval")
    assert caught.value.try_ == "--text-heads N"
    shape = shape_of(official, "retrieval", text_heads=4)
    assert shape.config.text.num_heads == 4
    assert not shape.notes
    assert "1 heads of the text stack's" in shape_of(official_file("vqa"), "vqa").notes[0]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("vision_encoder.patch_embed.proj.weight", "it has no vision_encoder.patch_embed"),
        ("text_encoder.embeddings.word_embeddings.weight", "it has no text_encoder.bert.embed"),
    ],
)
def test_a_file_that_lacks_what_the_shape_is_read_off_says_which(key, message):
    official = official_file("nlvr2")
    del official[key]
    with pytest.raises(CheckpointError, match=message) as caught:
        shape_of(official, "nlvr2", source="x.th")
    assert caught.value.where == "x.th"


def test_shapes_that_make_no_sense_are_refused_in_one_line():
    official = official_file("nlvr2")
    name = "vision_encoder.layers.0.blocks.0.attn.relative_position_bias_table"
    with pytest.raises(CheckpointError, match="48 rows, which is no square"):
        shape_of({**official, name: torch.zeros(48, 1)}, "nlvr2")
    with pytest.raises(CheckpointError, match=r"has the shape \[49\]"):
        shape_of({**official, name: torch.zeros(49)}, "nlvr2")
    with pytest.raises(CheckpointError, match="7 heads cannot share a width of 8"):
        shape_of({**official, name: torch.zeros(49, 7)}, "nlvr2")


@pytest.mark.parametrize("keys", [[], ["temp"], ["model.diffusion.weight"], ["text_encoder.x"]])
def test_what_is_no_official_checkpoint_is_not_recognised(keys):
    assert recognise(keys) is None


# ---------------------------------------------------------------- tied tensors and buffers


def tied_pairs(official):
    layer = "text_encoder.encoder.layer.{}.crossattention.self.{}.{}"
    return [
        (layer.format(first, part, leaf), layer.format(first + 1, part, leaf))
        for first in (2, 4)
        for part in ("key", "value")
        for leaf in ("weight", "bias")
    ]


def test_the_two_layers_of_a_pair_share_their_keys_and_values_and_nothing_else():
    official = official_file("nlvr2")
    pairs = tied_pairs(official)
    assert all(torch.equal(official[one], official[other]) for one, other in pairs)
    shared = {name for pair in pairs for name in pair}
    for name, value in official.items():
        if ".encoder.layer.2." in name and name not in shared:
            assert not torch.equal(value, official[name.replace(".layer.2.", ".layer.3.")]), name
    report = from_official(official, task_config("nlvr2")).report
    assert {note.name for note in report.tied} == {other for _, other in pairs}


@pytest.mark.parametrize("which", [0, 1])
def test_either_of_two_tied_tensors_may_stand_alone_and_they_may_not_differ(which):
    config = task_config("nlvr2")
    official = official_file("nlvr2")
    name = tied_pairs(official)[0][which]
    alone = {key: value for key, value in official.items() if key != name}
    assert_same_bits(from_official(alone, config).state, our_state(config))
    official[name] = official[name] + 1
    with pytest.raises(CheckpointError, match=r"layer\.3.* differs from .*layer\.2"):
        from_official(official, config)


def test_decoders_are_tied_in_vqa_and_captioning():
    for task in ("vqa", "captioning"):
        official = official_file(task)
        head = "text_decoder.cls.predictions."
        word = official["text_decoder.bert.embeddings.word_embeddings.weight"]
        assert torch.equal(official[f"{head}decoder.weight"], word)
        assert torch.equal(official[f"{head}decoder.bias"], official[f"{head}bias"])
        official[f"{head}decoder.weight"] = word + 1
        with pytest.raises(CheckpointError, match=r"decoder\.weight differs from"):
            from_official(official, task_config(task))
    official = official_file("vqa")
    words = [v for name, v in official.items() if name.endswith("word_embeddings.weight")]
    assert len(words) == 2
    assert not torch.equal(*words), "question and answer have words of their own"


def test_a_buffer_that_is_not_what_the_architecture_gives_is_said():
    config = task_config("vqa")
    official = official_file("vqa")
    name = "vision_encoder.layers.0.blocks.1.attn_mask"
    official[name] = official[name] * 0
    (warning,) = from_official(official, config).report.warnings
    assert warning.startswith(name)


# ---------------------------------------------------------------- from pre-training to the tasks


def missing_from_pretraining(task):
    pretraining = our_state(task_config("pretrain"))
    official = to_official(pretraining, task_config("pretrain"))
    config = task_config(task).model_copy(update={"embed_dim": 12})
    converted = from_official(official, config, strict=False)
    assert not converted.report.unexpected
    assert not converted.report.mismatched
    return pretraining, converted


@pytest.mark.parametrize("task", ["retrieval", "weak_grounding", "grounding", "captioning"])
def test_a_pretraining_file_holds_these_models_whole(task):
    pretraining, converted = missing_from_pretraining(task)
    assert converted.report.complete
    assert all(torch.equal(v, pretraining[name]) for name, v in converted.state.items())
    assert task in tasks_within(task_config("pretrain"))
    assert as_task(task_config("pretrain"), task) == task_config(task)


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "nlvr2_pretrain"])
def test_other_models_have_more_than_a_pretraining_file(task):
    assert task not in tasks_within(task_config("pretrain"))
    assert tasks_within(task_config(task)) == (task,)


@pytest.mark.parametrize("task", ["nlvr2", "nlvr2_pretrain"])
def test_a_pretraining_file_feeds_each_cross_layer_of_nlvr2_twice(task):
    pretraining, converted = missing_from_pretraining(task)
    head = {"nlvr2": "cls_head.", "nlvr2_pretrain": "ta_head."}[task]
    assert {name.split(".")[0] + "." for name in converted.report.missing} == {head}
    source_of = {0: 0, 1: 1, 2: 2, 3: 2, 4: 3, 5: 3}
    seen = set()
    for name, value in converted.state.items():
        if not name.startswith("text.layers."):
            assert torch.equal(value, pretraining[name]), name
            continue
        layer = int(name.split(".")[2])
        source = name.replace(f"layers.{layer}.", f"layers.{source_of[layer]}.")
        assert torch.equal(value, pretraining[source]), name
        seen.add(layer)
    assert seen == set(source_of)


def test_a_pretraining_file_feeds_the_answer_decoder_but_for_keys_of_pictures():
    pretraining, converted = missing_from_pretraining("vqa")
    # 64-wide questions, 32-wide pictures
    assert set(converted.report.missing) == {
        f"decoder.layers.{layer}.cross_attention.{part}.{leaf}"
        for layer in (0, 1)
        for part in ("key", "value")
        for leaf in ("weight", "bias")
    }
    for name, value in converted.state.items():
        source = name.replace("decoder.layers.1.", "text.layers.3.")
        source = source.replace("decoder.layers.0.", "text.layers.2.")
        source = source.replace("decoder.", "text.")
        assert torch.equal(value, pretraining[source]), name
    assert "decoder.lm_head.dense.weight" in converted.state


def test_the_decoder_takes_the_keys_too_where_pictures_are_as_wide_as_texts():
    tree = task_config("vqa").model_dump()
    tree["vision"]["embed_dim"] = 16
    config = ModelConfig.model_validate(tree)
    pretrain = task_config("pretrain").model_copy(update={"vision": config.vision})
    official = to_official(our_state(pretrain), pretrain)
    assert from_official(official, config, strict=False).report.complete


def test_nlvr2_starts_from_its_own_pretraining():
    official = official_file("nlvr2_pretrain")
    converted = from_official(official, task_config("nlvr2"), strict=False)
    assert {name.split(".")[0] for name in converted.report.missing} == {"cls_head"}
    assert {note.name.split(".")[0] for note in converted.report.dropped} == {
        "ta_head",
        "vision_proj",
    }


@pytest.mark.parametrize("task", ["nlvr2", "vqa", "captioning"])
def test_a_file_of_another_arrangement_is_named_and_not_read(task):
    with pytest.raises(CheckpointError, match=f"this is {TASKS[task].about}, which cannot"):
        from_official(official_file(task), task_config("grounding"))
    other = {"nlvr2": "vqa", "vqa": "captioning", "captioning": "nlvr2"}[task]
    with pytest.raises(CheckpointError, match=TASKS[other].about):
        from_official(official_file(other), task_config(task))


# ---------------------------------------------------------------- the released files

# sha256 of the sorted lines "name shape dtype" of the released checkpoints
RELEASED = {
    "nlvr2": (782, "0047fbe6292a3676d7236eee18ffc61c480bea81f9c1844c337f68642fc3a250"),
    "nlvr2_pretrain": (780, "615aeaa6c13545fee51eb591bc4465768b9d6cf009d0e6e000aa51de674aa677"),
    "vqa": (789, "4ee66bb2acedde7a01740e6ea47fe0f7b04d46c49460e4da5ae1635982bee724"),
    "captioning": (627, "888be77ec8c46413a41e2e012cf05e7ede6d90d151ee2872932711c1870a1718"),
}
PARAMETERS = {
    "nlvr2": 263_123_834,
    "nlvr2_pretrain": 262_065_851,
    "vqa": 293_483_442,
    "captioning": 212_935_602,
}


def released_config(task):
    kind = TASKS[task].kind
    extra = task == "nlvr2_pretrain"
    return ModelConfig(
        vision=VisionConfig() if extra else VisionConfig(image_size=384, window_size=12),
        text=TextConfig(
            num_layers=18 if kind == "pairs" else 12,
            pictures=2 if kind == "pairs" else 1,
            causal=kind == "causal",
        ),
        heads=TASKS[task].heads,
        decoder_layers=6 if kind == "decoder" else 0,
    )


def on_meta(config):
    with torch.device("meta"):
        return build_model(config).state_dict()


@pytest.mark.parametrize("task", RELEASED)
def test_written_files_have_exactly_the_released_names_shapes_and_types(task):
    config = released_config(task)
    state = on_meta(config)
    assert sum(value.numel() for value in state.values()) == PARAMETERS[task]
    lines = sorted(
        f"{name} {','.join(map(str, value.shape))} {str(value.dtype).removeprefix('torch.')}"
        for name, value in to_official(state, config).items()
    )
    count, digest = RELEASED[task]
    assert len(lines) == count
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest


LISTS = {
    "base": "pretrain",
    "retrieval": "retrieval",
    "grounding": "grounding",
    "nlvr": "nlvr2",
    "nlvr_pretrain": "nlvr2_pretrain",
    "vqa": "vqa",
    "caption": "captioning",
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the key lists are not here")
@pytest.mark.parametrize("name", LISTS)
def test_the_released_key_lists_are_recognised_read_and_written(name):
    listed = json.loads((SHARED / "official_checkpoint" / f"keys_{name}.json").read_text())
    state = {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for key, shape, dtype in listed
    }
    task = recognise(state)
    assert task == LISTS[name]
    shape = shape_of(state, task)
    assert shape.config.vision.image_size == (224 if "base" in name or "pre" in name else 384)
    assert shape.config.text.num_heads == 12
    assert shape.config.size == "base"
    converted = from_official(state, shape.config)
    assert not (converted.report.dropped)
    assert not (converted.report.converted)
    written = to_official(converted.state, shape.config)
    assert {(key, tuple(v.shape), str(v.dtype)) for key, v in written.items()} == {
        (key, tuple(shape), f"torch.{dtype}") for key, shape, dtype in listed
    }


@pytest.mark.skipif(not SHARED.is_dir(), reason="the golden cases are not here")
@pytest.mark.parametrize("case", TASK_OF_CASE)
def test_recorded_weights_of_every_task_come_back_bit_for_bit(case):
    folder = SHARED / "golden" / case
    recorded = json.loads((folder / "case.json").read_text())["config"]
    official = load_file(folder / "weights.safetensors")
    task = recognise(official)
    assert task == RECOGNISED[TASK_OF_CASE[case]]
    heads = recorded["bert"]["num_attention_heads"]
    config = shape_of(official, task, text_heads=heads).config
    stated = shape_of_case(case, recorded)
    assert config.vision == stated.vision
    assert config.text == stated.text
    assert config.heads == stated.heads
    assert config.decoder_layers == stated.decoder_layers
    converted = from_official(official, config)
    assert not (converted.report.warnings)
    assert not (converted.report.dropped)
    assert_same_bits(to_official(converted.state, config), official)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the golden cases are not here")
def test_nlvr2_starts_from_pretraining_as_recorded():
    told = json.loads((SHARED / "golden" / "nlvr" / "case.json").read_text())
    start = told["init_from_pretraining"]
    case = SHARED / "golden" / "pretrain_image"
    pretraining = load_file(case / "weights.safetensors")
    config = shape_of_case("nlvr", told["config"])
    converted = from_official(pretraining, config, strict=False)
    assert set(converted.report.missing) == set(start["parameters_not_initialised"])
    zeros = {n: torch.zeros(v.shape) for n, v in on_meta(config).items()}
    official = to_official({**zeros, **converted.state}, config)
    for name, source in start["example"].items():
        assert torch.equal(official[name], pretraining[source]), name
