"""Files of weights: every kind is read, and none of them runs code."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from tests.weights.shapes import assert_same_bits
from xvlm_core.errors import CheckpointError
from xvlm_core.weights.official import to_official
from xvlm_core.weights.reading import read_state_file


@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
@pytest.mark.parametrize("suffix", [".th", ".pth", ".bin", ".safetensors"])
def test_files_of_every_kind_are_read(tmp_path, model, wrap, suffix):
    path = tmp_path / f"weights{suffix}"
    official = to_official(model.state_dict(), model.config)
    if suffix == ".safetensors":
        save_file({key: value.clone() for key, value in official.items()}, path)
    else:
        content = {wrap: official, "config": {"image_res": 64}, "epoch": 3} if wrap else official
        torch.save(content, path)
    assert_same_bits(read_state_file(path), official)


class Planted:
    def __reduce__(self):
        return (os.system, ("touch planted",))


@pytest.mark.parametrize(
    ("protocol", "message"),
    [(None, r"is refused: it holds \w+\.system"), (2, "is refused"), (4, "more than tensors")],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_carries_code_is_refused_and_not_run(
    tmp_path, monkeypatch, protocol, message
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    content = {"model": {"temp": torch.zeros(1)}, "config": Planted()}
    if protocol is None:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content["config"], protocol=protocol))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_state_file(path)
    assert "\n" not in caught.value.what
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_cut_anywhere_is_reported_as_damaged_in_one_line(tmp_path, model, suffix):
    whole = tmp_path / f"whole{suffix}"
    official = to_official(model.state_dict(), model.config)
    if suffix == ".pth":
        torch.save({"model": official}, whole)
    else:
        save_file({key: value.clone() for key, value in official.items()}, whole)
    content = whole.read_bytes()
    for cut in (0, 1, 7, 8, 100, len(content) // 2, len(content) - 1):
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(content[:cut])
        with pytest.raises(CheckpointError, match="damaged or incomplete") as caught:
            read_state_file(path)
        assert caught.value.exit_code == 5
        assert "\n" not in caught.value.what
        assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"hello, this is text\n" * 20, "damaged"),
        ("a.safetensors", b"\xff" * 64, "damaged"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        ("a.zip", b"PK", "must end in"),
    ],
)
def test_files_that_are_no_weights_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_state_file(path)


def test_files_that_hold_something_else_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_state_file(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_state_file(tmp_path)
    path = tmp_path / "list.pth"
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="holds a list"):
        read_state_file(path)
    torch.save({"weight": torch.zeros(1), "epoch": 3}, path)
    with pytest.raises(CheckpointError, match="'epoch' is a int"):
        read_state_file(path)
