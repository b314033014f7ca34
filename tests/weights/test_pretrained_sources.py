"""Where first weights come from: files, folders and the hub."""

from __future__ import annotations

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file

from tests.weights.first_weights import new_model, write_folder
from xvlm_core.errors import CheckpointError, ConfigError
from xvlm_core.weights.pretrained import load_text, load_vision

LOADERS = pytest.mark.parametrize(
    ("load", "key"), [(load_vision, "init.vision"), (load_text, "init.text")]
)


@LOADERS
def test_missing_paths_and_empty_folders_are_errors(tmp_path, load, key):
    model = new_model()
    for source in (tmp_path / "no" / "such.pth", "weights.pth", "./nowhere", "a/b/c"):
        with pytest.raises(CheckpointError, match="does not exist") as caught:
            load(model, source, download=True)
        assert caught.value.where == key
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor"):
        load(model, tmp_path)


@LOADERS
def test_a_truncated_file_is_an_error(tmp_path, load, key, imagenet):
    whole = tmp_path / "whole.pth"
    torch.save(imagenet.state_dict(), whole)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=r"cut\.pth is damaged or incomplete"):
        load(new_model(), cut)


@pytest.fixture
def hub(monkeypatch):
    """A hub with one answer for each file name; records what was asked of it."""

    class Hub:
        asked: list = []  # noqa: RUF012
        answers: dict = {}  # noqa: RUF012

        def __call__(self, repo, name, *, local_files_only):
            self.asked.append((repo, name, local_files_only))
            answer = self.answers.get(name, EntryNotFoundError("404"))
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

    fake = Hub()
    fake.asked, fake.answers = [], {}
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake)
    return fake


@LOADERS
def test_a_hub_id_is_not_fetched_unless_asked(hub, load, key):
    hub.answers = dict.fromkeys(
        ("model.safetensors", "pytorch_model.bin"), LocalEntryNotFoundError("not cached")
    )
    with pytest.raises(ConfigError, match="nothing is fetched from the hub unless asked") as e:
        load(new_model(), "owner/name.v1")
    assert e.value.try_ == f"init.download=true, or {key}=/path/to/weights"
    assert e.value.exit_code == 3
    assert hub.asked
    assert all(local_files_only for _, _, local_files_only in hub.asked)


def test_a_hub_id_is_fetched_where_asked(hub, tmp_path, imagenet, bert):
    swin_file = tmp_path / "model.safetensors"
    save_file(imagenet.state_dict(), swin_file)
    hub.answers = {"model.safetensors": swin_file}
    assert load_vision(new_model(), "hf_hub:timm/swin", download=True).complete
    assert hub.asked[0] == ("timm/swin", "model.safetensors", False)

    folder = write_folder(tmp_path / "bert", bert)
    hub.answers = {name: folder / name for name in ("pytorch_model.bin", "config.json")}
    report = load_text(new_model(), "bert-base-uncased", download=True)
    assert ("bert-base-uncased", "config.json", False) in hub.asked
    assert not report.warnings  # config.json came along


def test_the_environment_allows_fetching_too(hub, tmp_path, imagenet, monkeypatch):
    swin_file = tmp_path / "model.safetensors"
    save_file(imagenet.state_dict(), swin_file)
    hub.answers = {"model.safetensors": swin_file}
    monkeypatch.setenv("XVLM_DOWNLOAD", "1")
    assert load_vision(new_model(), "timm/swin").complete
    assert hub.asked[0] == ("timm/swin", "model.safetensors", False)


def test_a_hub_without_weights_or_out_of_reach_is_an_error(hub):
    with pytest.raises(CheckpointError, match="on the hub holds neither"):
        load_text(new_model(), "owner/name", download=True)
    hub.answers = {"model.safetensors": LocalEntryNotFoundError("no connection\nand more")}
    with pytest.raises(CheckpointError, match="could not be fetched from the hub: no conn") as e:
        load_text(new_model(), "owner/name", download=True)
    assert "\n" not in e.value.what
