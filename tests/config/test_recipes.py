from __future__ import annotations

from pathlib import Path

import pytest

from xvlm_core.config.recipes import (
    find_recipe,
    kind_of_task,
    nearest_names,
    recipe_names,
    recipes_root,
)
from xvlm_core.config.resolve import dump_recipe, resolve
from xvlm_core.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
EXPECTED = [
    "finetune/caption",
    "finetune/coco-retrieval",
    "finetune/easy-vqa",
    "finetune/flickr30k",
    "finetune/nlvr2",
    "finetune/refcoco",
    "finetune/refcoco+",
    "finetune/refcoco+-weak",
    "finetune/refcocog",
    "finetune/vqa",
    "finetune/vqa_480",
    "finetune/world",
    "finetune/world-caption",
    "finetune/world-nlvr2",
    "finetune/world-retrieval",
    "finetune/world-vqa",
    "finetune/world-weak",
    "pretrain/16m",
    "pretrain/16m-released",
    "pretrain/4m",
    "pretrain/4m-released",
    "pretrain/box",
    "pretrain/caption-lm",
    "pretrain/nlvr2",
    "pretrain/world",
    "pretrain/world-box",
    "pretrain/world-caption-lm",
    "pretrain/world-nlvr2",
]


def test_the_recipes_found_are_the_recipes_expected() -> None:
    assert recipe_names() == EXPECTED
    on_disk = sorted(REPOSITORY.joinpath("recipes").rglob("*.y*ml"))
    assert len(on_disk) == len(EXPECTED), "a recipe that recipe_names() does not see"


@pytest.mark.parametrize("name", EXPECTED)
def test_every_recipe_holds_and_survives_being_written_down(name: str, tmp_path: Path) -> None:
    resolved = resolve(name)
    assert resolved.recipe.about
    assert name.startswith(f"{kind_of_task(resolved.recipe.task)}/")
    resolved.recipe.model.shape()
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(resolved.recipe), encoding="utf-8")
    assert resolve(str(file)).recipe == resolved.recipe


PAPER = [("4m", 8, 1_024), ("16m", 24, 3_072)]


@pytest.mark.parametrize(("name", "gpus", "pictures"), PAPER)
def test_pretraining_has_the_values_of_the_paper(name: str, gpus: int, pictures: int) -> None:
    """Section 4: what the paper says of a run (official.md 2.1, 2.9, 2.11, last lines)."""
    recipe = resolve(f"pretrain/{name}").recipe
    images, regions = recipe.data.images, recipe.data.regions
    assert images is not None
    assert regions is not None
    assert images.batch_size + regions.max_images == pictures
    assert images.batch_size == regions.max_images, "half of the pictures have boxes"
    assert (recipe.data.mix, recipe.compat) == ("joint", "none")
    assert recipe.schedule.max_steps == 200_000
    schedule, lr = recipe.schedule, recipe.optim.lr
    assert (schedule.kind, schedule.warmup) == ("linear", 2500)
    assert (schedule.warmup_from * lr, lr, schedule.floor * lr) == pytest.approx((1e-5, 1e-4, 1e-5))
    assert recipe.optim.weight_decay == 0.02
    assert (recipe.text.max_tokens, recipe.text.mask_prob) == (30, 0.25)
    assert recipe.official_ranks == gpus


@pytest.mark.parametrize(("name", "gpus", "pictures"), PAPER)
def test_where_the_paper_is_silent_the_released_values_hold(
    name: str, gpus: int, pictures: int
) -> None:
    ours, released = (resolve(f"pretrain/{one}").recipe for one in (name, f"{name}-released"))
    assert ours.init == released.init
    assert ours.model == released.model
    assert ours.losses == released.losses
    for section, keys in {
        "optim": ("lr", "lr_mult", "betas", "eps", "clip_norm"),
        "text": ("mask_prob", "max_masks", "skipgram_prb", "skipgram_size"),
        "data": ("size", "held_out", "leaks", "root"),
        "train": ("precision", "micro_batches", "checkpoint_every"),
    }.items():
        for key in keys:
            assert getattr(getattr(ours, section), key) == getattr(
                getattr(released, section), key
            ), key
    mine, theirs = ours.data.regions, released.data.regions
    assert mine is not None
    assert theirs is not None
    assert mine.stores == theirs.stores
    for key in ("max_regions", "min_perc_in_image", "caption", "kinds", "tokenized"):
        assert getattr(mine, key) == getattr(theirs, key), key
    assert mine.batch_texts is not None
    assert theirs.batch_texts is not None
    texts_a_picture = theirs.batch_texts / theirs.max_images
    assert mine.batch_texts / mine.max_images == pytest.approx(texts_a_picture, rel=0.01)


@pytest.mark.parametrize("name", ["4m", "4m-released", "16m", "16m-released"])
def test_an_update_of_the_paper_can_be_divided_over_its_gpus(name: str) -> None:
    recipe = resolve(f"pretrain/{name}").recipe
    images, regions = recipe.data.images, recipe.data.regions
    assert images is not None
    assert regions is not None
    parts = recipe.train.micro_batches
    assert parts == recipe.official_ranks
    for size in (images.batch_size, regions.max_images, regions.batch_texts):
        assert size is not None
        assert size % parts == 0


@pytest.mark.parametrize(
    ("name", "ranks", "size", "steps", "words", "masks"),
    [
        ("4m-released", 8, 5_114_489, 204_795, 40, 8),
        ("16m-released", 24, 16_219_845, 200_640, 30, 6),
    ],
)
def test_the_released_run_has_the_released_values(
    name: str, ranks: int, size: int, steps: int, words: int, masks: int
) -> None:
    recipe = resolve(f"pretrain/{name}").recipe
    images, regions = recipe.data.images, recipe.data.regions
    assert images is not None
    assert regions is not None
    assert recipe.compat == "official"
    assert recipe.data.mix == "extra"
    assert recipe.data.size == size
    assert recipe.official_ranks == recipe.train.micro_batches == ranks
    assert images.batch_size == 128 * ranks
    assert recipe.schedule.epochs is not None
    assert recipe.schedule.epochs * -(-size // images.batch_size) == steps
    a_rank = (regions.batch_texts or 0) // ranks, regions.max_images // ranks
    assert (*a_rank, regions.max_regions) == (128, 48, 5)
    assert (regions.iter_perc, regions.min_perc_in_image) == (0.5, 0.5)
    assert (recipe.text.max_words, recipe.text.max_tokens) == (words, words)
    assert (recipe.text.mask_prob, recipe.text.max_masks) == (0.25, masks)
    optim = recipe.optim
    assert (optim.lr, optim.lr_mult, optim.weight_decay) == (1e-4, 2.0, 0.01)
    assert (optim.betas, optim.eps, optim.clip_norm) == ((0.9, 0.98), 1e-8, 1.0)
    schedule = recipe.schedule
    assert (schedule.kind, schedule.warmup) == ("linear", 2500)
    assert (schedule.warmup_from, schedule.floor) == (0, 0)
    shape = recipe.model.shape()
    assert (shape.size, shape.vision.image_size, shape.vision.window_size) == ("base", 224, 7)
    assert recipe.init.vision
    assert recipe.init.text
    assert not recipe.init.download


@pytest.mark.parametrize("name", ["16m", "16m-released"])
def test_the_16m_recipes_keep_refcoco_out(name: str) -> None:
    regions = resolve(f"pretrain/{name}").recipe.data.regions
    assert regions is not None
    assert not [name for name in regions.stores if "refcoco" in name]


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_grounding_has_the_official_values(name: str) -> None:
    recipe = resolve(f"finetune/{name}").recipe
    regions = recipe.data.regions
    assert regions is not None
    assert regions.stores == recipe.data.validation == (name,)
    assert regions.max_images * recipe.official_ranks == 160
    assert recipe.train.micro_batches is None
    assert (regions.max_regions, regions.batch_texts) == (1, None)
    assert (recipe.losses.matching.weight, regions.absent) == (1.0, 1), "one to tell it from"
    assert (recipe.text.max_words, recipe.text.max_tokens) == (30, 40)
    shape = recipe.model.shape()
    assert (shape.vision.image_size, shape.vision.window_size, shape.vision.grid) == (384, 12, 12)
    optim = recipe.optim
    assert (optim.lr, optim.lr_mult, optim.weight_decay, optim.clip_norm) == (3e-5, 1.0, 0.01, None)
    schedule = recipe.schedule
    assert (schedule.kind, schedule.epochs, schedule.warmup) == ("linear", 10, 0.1)
    assert recipe.data.careful_flip
    assert recipe.init.checkpoint == "newest-pretrain"
    assert recipe.train.precision == "fp32"


@pytest.mark.parametrize(
    ("asked", "kind", "found"),
    [
        ("16m", None, "pretrain/16m"),
        ("refcoco+", None, "finetune/refcoco+"),
        ("finetune/world", "pretrain", "finetune/world"),
        ("world", "finetune", "finetune/world"),
        ("world", "pretrain", "pretrain/world"),
    ],
)
def test_short_and_full_names(asked: str, kind: str | None, found: str) -> None:
    assert find_recipe(asked, kind)[0] == found


def test_a_short_name_of_two_folders_is_refused() -> None:
    with pytest.raises(ConfigError, match="finetune/world or pretrain/world"):
        find_recipe("world")


@pytest.mark.parametrize(
    ("wrong", "near"), [("15m", "pretrain/16m"), ("RefCoco", "finetune/refcoco")]
)
def test_an_unknown_recipe_names_the_near_ones(wrong: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_recipe(wrong)
    assert near in nearest_names(wrong)
    assert near in "\n".join(caught.value.lines())
    assert caught.value.exit_code == 3


def test_a_name_like_nothing_lists_what_there_is() -> None:
    with pytest.raises(ConfigError) as caught:
        find_recipe("qqqq")
    assert all(name in caught.value.details[0] for name in EXPECTED)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no recipe file \./no-such\.yaml"):
        find_recipe("./no-such.yaml")


def test_recipes_are_package_data_of_the_wheel() -> None:
    """What hatchling would put into the wheel has each recipe inside the package, none beside."""
    builders = pytest.importorskip("hatchling.builders.wheel")
    builder = builders.WheelBuilder(str(REPOSITORY))
    included = {file.distribution_path for file in builder.recurse_included_files()}
    names = sorted(path for path in included if path.endswith((".yaml", ".yml")))
    assert names == sorted(f"xvlm_core/recipes/{name}.yaml" for name in EXPECTED)


def test_the_root_is_read_through_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = tmp_path / "xvlm_core"
    (packaged / "recipes" / "pretrain").mkdir(parents=True)
    (packaged / "recipes" / "pretrain" / "own.yaml").write_text("task: pretrain\n")
    monkeypatch.setattr("importlib.resources.files", lambda package: packaged)
    assert recipes_root() == packaged / "recipes"
    assert recipe_names() == ["pretrain/own"]


def test_fine_tuning_for_nlvr2_has_the_released_values() -> None:
    """official.md 3.3."""
    recipe = resolve("finetune/nlvr2").recipe
    assert recipe.data.pairs is not None
    assert (recipe.model.image_size, recipe.model.window_size) == (384, 12)
    assert (recipe.data.pairs.batch_size, recipe.schedule.epochs) == (80, 10)
    assert (recipe.optim.lr, recipe.optim.weight_decay, recipe.optim.lr_mult) == (3e-5, 0.01, 1)
    assert (recipe.schedule.kind, recipe.schedule.warmup) == ("linear", 0.1)
    assert recipe.optim.clip_norm is None
    assert recipe.data.validation_split == "val"
    assert recipe.init.checkpoint == "newest-nlvr2_pretrain"


def test_extra_pretraining_for_nlvr2_has_the_released_values() -> None:
    """official.md 2.11, the fifth column."""
    recipe = resolve("nlvr2", kind="pretrain").recipe
    assert recipe.data.images is not None
    assert recipe.data.images.stores == ("coco", "vg", "sbu", "cc3m")
    parts = recipe.train.micro_batches
    assert parts is not None
    assert recipe.data.images.batch_size == 128 * parts
    assert (recipe.data.size, recipe.schedule.epochs) == (5_114_489, 2)
    assert (recipe.text.max_words, recipe.text.max_tokens) == (40, 40)
    assert (recipe.optim.lr, recipe.optim.weight_decay, recipe.optim.lr_mult) == (3e-5, 0.01, 2)
    assert (recipe.schedule.warmup, recipe.optim.clip_norm) == (0.1, 1.0)
    assert recipe.model.shape().vision.image_size == 224
    assert recipe.init.checkpoint == "newest-pretrain"


def test_extra_box_pretraining_has_the_released_values() -> None:
    """official.md 2.11, the fourth column, and 3.4, last line."""
    recipe = resolve("pretrain/box").recipe
    data, regions, parts = recipe.data, recipe.data.regions, recipe.train.micro_batches
    assert regions is not None
    assert parts is not None
    assert (recipe.task, recipe.init.checkpoint) == ("box_pretrain", "newest-pretrain")
    assert regions.stores == ("coco", "vg")
    assert (regions.batch_texts, regions.max_images) == (24 * parts, 9 * parts)
    assert (regions.max_regions, regions.min_perc_in_image, regions.caption) == (5, 0.5, False)
    assert (regions.iter_perc, regions.tokenized, data.images) == (1.0, False, None)
    assert data.size is not None
    steps = -(-318_547 // (24 * parts))
    assert steps == data.size / regions.max_images == 1_660
    assert (recipe.schedule.kind, recipe.schedule.epochs, recipe.schedule.warmup) == (
        "linear", 2, 0.1,
    )  # fmt: skip
    assert (recipe.text.max_words, recipe.text.max_tokens) == (40, 40)
    optim = recipe.optim
    assert (optim.lr, optim.weight_decay, optim.clip_norm) == (3e-5, 0.01, 1.0)
    assert (optim.betas, optim.eps) == ((0.9, 0.98), 1e-8)
    assert recipe.model.shape().vision.image_size == 224
    weights = {name: loss.weight for name, loss in recipe.losses}
    assert (weights["box_l1"], weights["box_giou"]) == (1, 1)
    assert weights["contrastive"] == weights["matching"] == weights["masked_lm"] == 0


@pytest.mark.parametrize(
    ("name", "store", "pairs", "k"),
    [
        ("coco-retrieval", "coco-karpathy", 566_747, 256),
        ("flickr30k", "flickr30k", 145_000, 128),
    ],
)
def test_retrieval_has_the_released_values(name: str, store: str, pairs: int, k: int) -> None:
    """official.md 3.1."""
    recipe = resolve(f"finetune/{name}").recipe
    data, optim, schedule = recipe.data, recipe.optim, recipe.schedule
    assert recipe.task == "retrieval"
    assert data.images is not None
    assert data.images.stores == data.validation == (store,)
    assert data.images.batch_size == 20 * recipe.official_ranks == 160
    assert (data.size, data.validation_split) == (pairs, "val")
    assert recipe.train.evaluate_every == -(-pairs // data.images.batch_size), "every epoch"
    shape = recipe.model.shape()
    assert (shape.vision.image_size, shape.vision.window_size) == (384, 12)
    assert recipe.scoring.candidates == k
    assert (recipe.text.max_words, recipe.text.max_tokens) == (30, 40)
    assert (optim.lr, optim.lr_mult, optim.weight_decay, optim.clip_norm) == (3e-5, 1.0, 0.01, None)
    assert (schedule.kind, schedule.epochs, schedule.warmup) == ("linear", 10, 0.1)
    assert {recipe.losses.contrastive.weight, recipe.losses.matching.weight} == {1.0}
    assert recipe.init.checkpoint == "newest-pretrain"
    assert recipe.train.precision == "fp32"


def test_language_model_pretraining_has_the_released_values() -> None:
    """official.md 2.11, the last column."""
    recipe = resolve("pretrain/caption-lm").recipe
    assert (recipe.task, recipe.init.checkpoint) == ("caption_pretrain", "newest-pretrain")
    assert recipe.data.images is not None
    assert recipe.data.images.stores == ("coco", "vg", "sbu", "cc3m")
    assert recipe.data.images.batch_size == 128 * recipe.official_ranks
    assert (recipe.data.size, recipe.schedule.epochs) == (5_114_489, 2)
    assert (recipe.text.max_words, recipe.text.max_tokens) == (40, 40)
    assert (recipe.optim.lr, recipe.optim.weight_decay) == (3e-5, 0.01)
    assert (recipe.schedule.warmup, recipe.optim.clip_norm) == (0.1, 1.0)
    assert recipe.model.shape().vision.image_size == 224


def test_fine_tuning_for_captions_has_the_released_values() -> None:
    """official.md 3.6, the first column."""
    recipe = resolve("finetune/caption").recipe
    assert recipe.data.images is not None
    assert (recipe.model.image_size, recipe.model.window_size) == (384, 12)
    assert (recipe.data.images.batch_size, recipe.schedule.epochs) == (256, 5)
    assert recipe.data.size == 566_747
    assert (recipe.captioning.prompt, recipe.captioning.label_smoothing) == ("a picture of ", 0.1)
    with pytest.raises(ConfigError) as caught:
        resolve("caption", ["captioning.prompt=a picture of"], environ={}, kind="finetune")
    assert "glued to it: write 'a picture of '" in str(caught.value.details)
    assert (recipe.scoring.beams, recipe.scoring.max_length, recipe.scoring.min_length) == (
        3, 20, 5,
    )  # fmt: skip
    assert (recipe.optim.lr, recipe.optim.weight_decay, recipe.optim.lr_mult) == (1e-5, 0.01, 1)
    assert (recipe.schedule.kind, recipe.schedule.warmup) == ("linear", 0.1)
    assert (recipe.text.max_words, recipe.text.max_tokens) == (40, 40)
    assert recipe.data.validation_split == "val"
    assert recipe.init.checkpoint == "newest-caption_pretrain"


def test_the_second_stage_of_captions_has_the_released_values() -> None:
    """official.md 3.6, the second column and the table of the second stage."""
    recipe = resolve("finetune/caption", ["captioning.stage=self_critical"]).recipe
    assert recipe.data.images is not None
    assert recipe.data.images.batch_size == 64
    assert (recipe.schedule.max_steps, recipe.schedule.epochs) == (44_275, None)
    assert (recipe.optim.lr, recipe.train.evaluate_every) == (1e-5, 500)
    second = recipe.captioning.self_critical
    assert (second.samples, second.baseline, second.references) == (5, "greedy", 5)
    assert (second.cider, second.bleu) == (1.0, 0.0)
    assert recipe.init.checkpoint == "newest-captioning"
    assert recipe.scoring.max_length == 20
