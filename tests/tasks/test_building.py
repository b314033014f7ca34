from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.data.painted import TOKENIZER
from tests.models.shapes import bench_config
from tests.tasks.recipes import MODEL, grounding_recipe, merged, recipe, write_stores
from xvlm_core.errors import CheckpointError, ConfigError
from xvlm_core.models.sizes import ModelConfig
from xvlm_core.models.xvlm import XVLM
from xvlm_core.tasks.building import (
    model_shape,
    sample_settings,
    start_from_checkpoint,
    tokenizer_of,
)
from xvlm_core.tasks.registry import build_task, missing_stores, require_stores, stores_of
from xvlm_core.weights.folder import ModelInfo, save_model_folder
from xvlm_core.weights.official import to_official


def folder_of(folder: Path, config: ModelConfig) -> Path:
    torch.manual_seed(1)
    info = ModelInfo(task="pretrain", max_words=8, max_tokens=8, config=config)
    save_model_folder(folder, XVLM(config), TOKENIZER, info)
    return folder


def changed(config: ModelConfig, **changes: Any) -> ModelConfig:
    return ModelConfig.model_validate(merged(config.model_dump(), changes))


def weights_of(model: XVLM) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


# ------------------------------------------------------------------ settings


def test_settings_of_samples_are_those_of_the_recipe(tmp_path: Path) -> None:
    settings = recipe(
        tmp_path,
        compat="official",
        data={
            "careful_flip": False,
            "augment": True,
            "regions": {
                "max_regions": 4,
                "kinds": ["region", "phrase"],
                "caption": False,
                "min_perc_in_image": 0.7,
                "absent": 3,
                "tokenized": True,
            },
        },
        text={"mask_prob": 0.3, "max_masks": 5, "skipgram_prb": 0.1, "skipgram_size": 2},
    )
    shape = model_shape(settings, tokenizer_of(settings), ("box",))
    made = sample_settings(settings, shape)
    assert (made.image_size, made.grid) == (64, 4)
    assert (made.max_words, made.max_tokens, made.mask_prob, made.max_masks) == (12, 12, 0.3, 5)
    assert (made.skipgram_prb, made.skipgram_size) == (0.1, 2)
    assert made.tokenized_regions
    assert (made.max_regions, made.caption, made.min_inside, made.absent) == (4, False, 0.7, 3)
    assert made.kinds == ("region", "phrase")
    assert (made.augment, made.careful_flip, made.compat_official) == (True, False, True)
    captions = sample_settings(recipe(tmp_path, data={"regions": None}), shape)
    assert captions.absent == 0


@pytest.mark.parametrize(
    ("task", "compat", "asked", "careful"),
    [
        ("pretrain", "none", None, True),
        ("pretrain", "official", None, False),
        ("pretrain", "official", True, True),
        ("grounding", "none", None, True),
        ("grounding", "official", None, True),
        ("grounding", "none", False, False),
    ],
)
def test_flips_are_careful_except_in_the_released_pretraining(
    tmp_path: Path, task: str, compat: str, asked: bool | None, careful: bool
) -> None:
    make = recipe if task == "pretrain" else grounding_recipe
    settings = make(tmp_path, compat=compat, data={"careful_flip": asked})
    shape = model_shape(settings, tokenizer_of(settings), ("box",))
    assert sample_settings(settings, shape).careful_flip is careful


def test_no_text_is_cut_in_the_released_grounding(tmp_path: Path) -> None:
    write_stores(tmp_path)
    for make, compat, limit in (
        (grounding_recipe, "none", 12),
        (grounding_recipe, "official", 64),
        (recipe, "official", 12),
    ):
        settings = make(tmp_path, compat=compat)
        task = build_task(settings)
        assert sample_settings(settings, task.config).max_tokens == limit
        assert task.info().max_tokens == limit, "evaluation reads as much as training"


def test_a_text_longer_than_the_model_has_positions_is_refused(tmp_path: Path) -> None:
    settings = recipe(tmp_path, text={"max_tokens": 65})
    with pytest.raises(ConfigError, match="64 positions") as caught:
        model_shape(settings, tokenizer_of(settings), ("box",))
    assert caught.value.try_ == "text.max_tokens=64"


# ------------------------------------------------------------------ tokenizer


def test_the_tokenizer_is_that_of_the_checkpoint_else_of_the_recipe(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", bench_config(vocab_size=TOKENIZER.vocab_size))
    settings = recipe(tmp_path)
    assert tokenizer_of(settings, folder).encode("doggy", 9) == TOKENIZER.encode("doggy", 9)
    world = tokenizer_of(settings)
    assert world.unk_id not in world.encode("red circle", 9).ids
    bert = tokenizer_of(recipe(tmp_path, text={"tokenizer": "bert-base-uncased"}))
    assert bert.vocab_size == 30522
    named = recipe(tmp_path, text={"tokenizer": str(folder / "tokenizer.json")})
    assert tokenizer_of(named).vocab_size == TOKENIZER.vocab_size


def test_a_missing_or_damaged_tokenizer_says_what_to_type(tmp_path: Path) -> None:
    named = recipe(tmp_path, text={"tokenizer": str(tmp_path / "none.json")})
    with pytest.raises(ConfigError, match=r"none\.json") as missing:
        tokenizer_of(named)
    assert missing.value.try_
    (tmp_path / "bad.json").write_text("{")
    named = recipe(tmp_path, text={"tokenizer": str(tmp_path / "bad.json")})
    folder = folder_of(tmp_path / "model", bench_config(vocab_size=TOKENIZER.vocab_size))
    (folder / "tokenizer.json").unlink()
    for settings, start in ((named, None), (recipe(tmp_path), folder)):
        with pytest.raises(CheckpointError) as caught:
            tokenizer_of(settings, start)
        assert caught.value.exit_code == 5
        assert caught.value.try_


# ------------------------------------------------------------------ first weights


def test_weights_of_the_same_shape_are_taken_bit_for_bit(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, bench_config())
    torch.manual_seed(1)
    source = XVLM(bench_config())
    torch.manual_seed(2)
    model = XVLM(bench_config())
    first = start_from_checkpoint(model, folder)
    total = sum(parameter.numel() for parameter in model.parameters())
    n = len(model.state_dict())
    assert first.notes == [
        f"weights from {folder}: {n} matched",
        f"of {total:,} parameters {total:,} come from files, 0 are random (none)",
    ]
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_heads_that_are_not_carried_are_left_out_and_new_ones_stay_fresh(tmp_path: Path) -> None:
    theirs = changed(bench_config(), heads=("contrastive", "matching", "masked_lm"))
    folder = folder_of(tmp_path, theirs)
    model = XVLM(changed(bench_config(), heads=("matching", "box")))
    before = weights_of(model)
    notes = start_from_checkpoint(model, folder).notes
    assert notes[2:] == [
        "left out: temp, text.lm_head, text_proj, vision_proj",
        "fresh: bbox_head",
    ]
    for name, value in model.state_dict().items():
        same = torch.equal(value, before[name])
        if name.startswith("bbox_head."):
            assert same, name
        elif name.endswith("weight") and value.ndim > 1:
            assert not same, name


def test_position_tables_are_resized_to_another_picture_size(tmp_path: Path) -> None:
    config = changed(bench_config(), vision={"depths": (2, 2), "num_heads": (1, 2)})
    folder = folder_of(tmp_path, config)
    larger = changed(config, vision={"image_size": 192, "window_size": 6})
    model = XVLM(larger)
    notes = start_from_checkpoint(model, folder).notes
    tables = [n for n in model.state_dict() if n.endswith("relative_position_bias_table")]
    assert len(tables) == 4
    assert sum("window 4 -> 6" in note for note in notes) == 4
    model.encode_pictures(torch.zeros(1, 3, 192, 192))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"size": "small", "text": {"hidden_size": 96}}, "text.embeddings.word.weight"),
        ({"size": "small", "vision": {"embed_dim": 32}}, "vision.backbone"),
        ({"text": {"num_layers": 6}}, "text.layers.4"),
        ({"text": {"num_layers": 3}}, "text.layers.3"),
        ({"text": {"fusion_layer": 1}}, "text.layers.1.cross"),
        ({"text": {"num_heads": 2}}, "text.num_heads: 4 in the checkpoint, 2 here"),
        ({"text": {"vocab_size": 201}}, "text.embeddings.word.weight"),
        ({"embed_dim": 16}, "vision_proj.weight"),
    ],
)
def test_a_model_of_another_size_is_refused_and_nothing_is_loaded(
    tmp_path: Path, changes: dict[str, Any], difference: str
) -> None:
    folder = folder_of(tmp_path, bench_config())
    model = XVLM(changed(bench_config(), **changes))
    before = weights_of(model)
    with pytest.raises(CheckpointError, match="another size") as caught:
        start_from_checkpoint(model, folder)
    assert caught.value.exit_code == 5
    assert any(difference in line for line in caught.value.details), caught.value.details
    assert ("model.size=test" in str(caught.value.try_)) == ("size" in changes)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_a_missing_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist") as caught:
        start_from_checkpoint(XVLM(bench_config()), tmp_path / "none.th")
    assert caught.value.try_


def official_file(path: Path, config: ModelConfig, *without: str) -> Path:
    torch.manual_seed(1)
    state = to_official(XVLM(config).state_dict(), config)
    kept = {n: v.clone().contiguous() for n, v in state.items() if not n.startswith(without)}
    save_file(kept, path)
    return path


def test_a_released_file_is_taken_whole_or_for_its_heads(tmp_path: Path) -> None:
    path = official_file(tmp_path / "m.safetensors", bench_config())
    torch.manual_seed(1)
    source = weights_of(XVLM(bench_config()))
    for heads in (("contrastive", "matching", "masked_lm", "box"), ("matching", "box")):
        torch.manual_seed(2)
        model = XVLM(changed(bench_config(), heads=heads))
        notes = start_from_checkpoint(model, path).notes
        assert str(path) in notes[0]
        assert all(torch.equal(v, source[n]) for n, v in model.state_dict().items())
    without_box = official_file(tmp_path / "retrieval.safetensors", bench_config(), "bbox_head.")
    notes = start_from_checkpoint(model, without_box).notes
    assert notes[-1] == "fresh: bbox_head"


def test_a_released_file_that_lacks_more_than_heads_is_refused(tmp_path: Path) -> None:
    path = official_file(tmp_path / "m.safetensors", bench_config(), "vision_encoder.layers.0")
    model = XVLM(bench_config())
    before = weights_of(model)
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        start_from_checkpoint(model, path)
    assert caught.value.try_
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


# ------------------------------------------------------------------ the whole task


def test_fine_tuning_starts_from_a_pretraining_folder(tmp_path: Path) -> None:
    write_stores(tmp_path, train=3, val=1)
    pretrain = build_task(recipe(tmp_path))
    model = pretrain.build_model()
    pretrain.save_model(model, tmp_path / "model")
    task = build_task(grounding_recipe(tmp_path), start_from=tmp_path / "model")
    tuned = task.build_model()
    source = model.state_dict()
    assert all(torch.equal(v, source[n]) for n, v in tuned.state_dict().items())
    assert "left out: temp, text.lm_head, text_proj, vision_proj" in task.notes


def test_stores_that_are_missing_are_named_once_with_a_command(tmp_path: Path) -> None:
    settings = grounding_recipe(
        tmp_path, data={"images": {"stores": ["coco", "vg"]}, "validation": ["vg", "regions"]}
    )
    assert stores_of(settings) == ["coco", "vg", "regions"]
    missing = missing_stores(settings)
    assert [store.name for store in missing] == ["coco", "vg", "regions"]
    assert missing[0].command == f"xvlm prepare-data coco FOLDER -o {tmp_path / 'coco'}"
    with pytest.raises(Exception, match="coco, vg, regions are not in") as caught:
        require_stores(settings, "mine")
    assert caught.value.exit_code == 4  # type: ignore[attr-defined]
    assert "prepare-data world --as mine" in str(caught.value.try_)  # type: ignore[attr-defined]
    write_stores(tmp_path, train=1, val=1)
    assert [store.name for store in missing_stores(settings)] == ["coco", "vg"]


def test_shapes_of_the_recipes_model(tmp_path: Path) -> None:
    settings = recipe(tmp_path)
    shape = model_shape(settings, tokenizer_of(settings), ("matching",))
    assert shape.heads == ("matching",)
    assert shape.text.vocab_size == tokenizer_of(settings).vocab_size
    assert shape.vision.embed_dim == MODEL["overrides"]["vision"]["embed_dim"]
