from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.data.painted import TOKENIZER
from tests.models.shapes import bench_config
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.errors import CheckpointError
from xvlm_core.models.sizes import ModelConfig, tiny
from xvlm_core.models.xvlm import XVLM
from xvlm_core.weights.folder import (
    ModelInfo,
    load_model_folder,
    load_weights,
    read_info,
    read_weights,
    save_model_folder,
)

CONFIG = bench_config(vocab_size=TOKENIZER.vocab_size)


def written(folder: Path, config: ModelConfig = CONFIG, half: bool = False) -> XVLM:
    torch.manual_seed(0)
    model = XVLM(config)
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(2**24 + 1)  # float32 cannot hold it
    info = ModelInfo(
        task="pretrain",
        about="für Menschen",
        trained_on="shapes",
        max_words=7,
        max_tokens=9,
        config=config,
    )
    save_model_folder(folder, model.half() if half else model, TOKENIZER, info)
    return model


def refused(folder: Path, match: str) -> CheckpointError:
    with pytest.raises(CheckpointError, match=match) as caught:
        load_model_folder(folder)
    assert caught.value.exit_code == 5
    assert caught.value.try_
    assert str(folder) in caught.value.what
    return caught.value


@pytest.mark.parametrize("config", [CONFIG, tiny()], ids=["swin", "tiny"])
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, config: ModelConfig) -> None:
    vocabulary = TOKENIZER.vocab_size
    config = config.model_copy(
        update={"text": config.text.model_copy(update={"vocab_size": vocabulary})}
    )
    model = written(tmp_path / "new" / "folder", config)
    loaded = load_model_folder(tmp_path / "new" / "folder")
    assert not loaded.model.training
    state = loaded.model.state_dict()
    assert list(state) == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert state[name].dtype == value.dtype, name
        assert torch.equal(state[name], value), name
    assert loaded.info.config == config
    assert (loaded.info.about, loaded.info.max_words) == ("für Menschen", 7)
    assert loaded.tokenizer.encode("a red doggy", 9) == TOKENIZER.encode("a red doggy", 9)


def test_half_precision_files_come_back_as_float32_of_the_same_value(tmp_path: Path) -> None:
    model = written(tmp_path, half=True)
    assert all(v.dtype == torch.float16 for v in read_weights(tmp_path).values())
    state = load_model_folder(tmp_path).model.state_dict()
    for name, value in model.state_dict().items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], value.float()), name


def test_a_folder_is_written_over_an_older_one(tmp_path: Path) -> None:
    written(tmp_path, bench_config(vocab_size=TOKENIZER.vocab_size, hidden_size=24))
    written(tmp_path)
    assert load_model_folder(tmp_path).info.config == CONFIG


def test_what_a_model_is_can_be_read_without_torch(tmp_path: Path) -> None:
    written(tmp_path)
    code = (
        "import sys; from pathlib import Path; from xvlm_core.weights.folder import read_info; "
        f"print(read_info(Path({str(tmp_path)!r})).task, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pretrain", "False"]


def truncate(share: float) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return cut


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_text(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


def with_tensor(name: str, value: torch.Tensor | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        state.pop(name, None)
        if value is not None:
            state[name] = value
        save_file(state, folder / "model.safetensors")

    return change


def other_tokenizer(folder: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    Tokenizer.from_vocab(pieces).save(folder)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (truncate(0.0), "damaged or truncated"),
        (truncate(0.001), "damaged or truncated"),
        (truncate(0.5), "damaged or truncated"),
        (truncate(0.999), "damaged or truncated"),
        (without("model.safetensors"), "has no model.safetensors"),
        (without("config.json"), "no config.json"),
        (without("tokenizer.json"), "tokenizer.json is missing or damaged"),
        (with_text("tokenizer.json", "{"), "tokenizer.json is missing or damaged"),
        (other_tokenizer, "knows 6 pieces"),
        (with_text("config.json", ""), "does not describe"),
        (with_text("config.json", "[]"), "does not describe"),
        (with_text("config.json", '{"task": "x"}'), "does not describe"),
        (with_tensor("temp", None), "another shape"),
        (with_tensor("more", torch.zeros(1)), "another shape"),
        (with_tensor("text_proj.bias", torch.zeros(3)), "another shape"),
    ],
)
def test_a_damaged_or_inconsistent_folder_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], match: str
) -> None:
    written(tmp_path)
    damage(tmp_path)
    refused(tmp_path, match)


def test_all_kinds_of_difference_are_listed(tmp_path: Path) -> None:
    written(tmp_path)
    for name, value in (
        ("temp", None),
        ("more", torch.zeros(1)),
        ("text_proj.bias", torch.ones(3)),
    ):
        with_tensor(name, value)(tmp_path)
    details = refused(tmp_path, "3 entries differ").details
    assert details == (
        "missing: temp",
        "unknown: more",
        "text_proj.bias: (3,) in the file, (32,) in the model",
    )


def test_a_folder_of_no_model_or_of_none_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no model folder")
    refused(tmp_path, "not a model folder")


def test_a_binary_config_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    refused(tmp_path, "does not describe")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_an_unreadable_config_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "config.json").chmod(0)
    refused(tmp_path, "cannot be read")


def edited(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    content.update(changes)
    (folder / "config.json").write_text(json.dumps(content))


def test_a_newer_format_says_so_whatever_else_it_holds(tmp_path: Path) -> None:
    written(tmp_path)
    edited(tmp_path, format_version=2, something_new=1)
    assert "upgrade" in str(refused(tmp_path, "newer xvlm").try_)


def test_texts_longer_than_the_positions_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    edited(tmp_path, max_tokens=65)
    refused(tmp_path, "does not describe")
    with pytest.raises(CheckpointError) as caught:
        read_info(tmp_path)
    assert "max_positions" in caught.value.what


def test_resuming_with_a_model_of_another_shape_changes_nothing(tmp_path: Path) -> None:
    written(tmp_path)
    other = XVLM(bench_config(vocab_size=TOKENIZER.vocab_size, hidden_size=24))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="another shape") as caught:
        load_weights(other, tmp_path)
    assert caught.value.try_
    assert all(torch.equal(v, before[n]) for n, v in other.state_dict().items())
