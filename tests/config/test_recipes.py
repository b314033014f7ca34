from __future__ import annotations

from pathlib import Path

import pytest

from xvlm_core.config.recipes import find_recipe, nearest_names, recipe_names, recipes_root
from xvlm_core.config.resolve import dump_recipe, resolve
from xvlm_core.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
EXPECTED = [
    "finetune/refcoco",
    "finetune/refcoco+",
    "finetune/refcocog",
    "finetune/world",
    "pretrain/16m",
    "pretrain/4m",
    "pretrain/world",
]


def test_the_recipes_found_are_the_recipes_expected() -> None:
    assert recipe_names() == EXPECTED
    on_disk = sorted(REPOSITORY.joinpath("recipes").rglob("*.y*ml"))
    assert len(on_disk) == len(EXPECTED), "a recipe that recipe_names() does not see"


@pytest.mark.parametrize("name", EXPECTED)
def test_every_recipe_holds_and_survives_being_written_down(name: str, tmp_path: Path) -> None:
    resolved = resolve(name)
    assert resolved.recipe.about
    assert (resolved.recipe.task == "pretrain") == name.startswith("pretrain/")
    resolved.recipe.model.shape()
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(resolved.recipe), encoding="utf-8")
    assert resolve(str(file)).recipe == resolved.recipe


@pytest.mark.parametrize(
    ("name", "size", "global_batch", "steps", "words", "masks"),
    [("4m", 5_114_489, 1_024, 204_795, 40, 8), ("16m", 16_219_845, 3_072, 200_640, 30, 6)],
)
def test_pretraining_has_the_official_values(
    name: str, size: int, global_batch: int, steps: int, words: int, masks: int
) -> None:
    recipe = resolve(f"pretrain/{name}").recipe
    images, regions = recipe.data.images, recipe.data.regions
    assert images is not None
    assert regions is not None
    assert recipe.data.size == size
    assert images.batch_size * recipe.official_ranks == global_batch
    assert recipe.schedule.epochs is not None
    assert recipe.schedule.epochs * -(-size // global_batch) == steps
    assert (regions.batch_texts, regions.max_images, regions.max_regions) == (128, 48, 5)
    assert (regions.iter_perc, regions.min_perc_in_image) == (0.5, 0.5)
    assert (recipe.text.max_words, recipe.text.max_tokens) == (words, words)
    assert (recipe.text.mask_prob, recipe.text.max_masks) == (0.25, masks)
    optim = recipe.optim
    assert (optim.lr, optim.lr_mult, optim.weight_decay) == (1e-4, 2.0, 0.01)
    assert (optim.betas, optim.eps, optim.clip_norm) == ((0.9, 0.98), 1e-8, 1.0)
    assert (recipe.schedule.kind, recipe.schedule.warmup) == ("linear", 2500)
    shape = recipe.model.shape()
    assert (shape.size, shape.vision.image_size, shape.vision.window_size) == ("base", 224, 7)
    assert recipe.init.vision
    assert recipe.init.text
    assert not recipe.init.download


def test_the_16m_recipe_keeps_refcoco_out() -> None:
    regions = resolve("pretrain/16m").recipe.data.regions
    assert regions is not None
    assert not [name for name in regions.stores if "refcoco" in name]


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_grounding_has_the_official_values(name: str) -> None:
    recipe = resolve(f"finetune/{name}").recipe
    regions = recipe.data.regions
    assert regions is not None
    assert regions.stores == recipe.data.validation == (name,)
    assert regions.max_images * recipe.official_ranks == 160
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
