"""A model on the hub is named where any other is; it is uploaded with a page about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Run
from tests.weights.fake_hub import Hub, serving, use

ID = "owner/shapes"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: None) -> Iterator[Hub]:
    with serving() as running:
        use(running, monkeypatch, tmp_path / "cache")
        yield running


@pytest.fixture
def uploaded(hub: Hub, model: Path) -> Hub:
    hub.add(ID, {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()})
    return hub


def test_predict_asks_before_it_fetches_and_then_needs_no_network(
    xvlm: Run, uploaded: Hub, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ("predict", "grounding", picture, "red circle", "--no-files", "--checkpoint", ID)
    error = xvlm(*ask).refusal(5)
    assert "nothing is fetched from the hub unless asked" in error
    assert "--download" in error
    assert uploaded.asked == []
    done = xvlm(*ask, "--download", "--json").document()["result"]
    assert done["model"]["origin"].startswith(f"The model hub:{ID}@")
    uploaded.asked.clear()
    assert xvlm(*ask).code == 0
    monkeypatch.setenv("XVLM_CHECKPOINT", ID)
    assert xvlm(*ask[:-2]).code == 0
    assert uploaded.asked == []


def test_the_environment_allows_fetching(
    xvlm: Run, uploaded: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XVLM_DOWNLOAD", "1")
    result = xvlm("validate", ID, "--json").document()["result"]
    assert (result["kind"], result["task"]) == ("model", "grounding")
    assert f"init.checkpoint=hub:{ID}@" in result["resume"]["why_not"]


@pytest.mark.parametrize("name", [ID, f"hub:{ID}", f"{ID}@main"])
def test_cp_takes_a_model_from_the_hub(xvlm: Run, uploaded: Hub, tmp_path: Path, name: str) -> None:
    assert xvlm("cp", name, "mine").code == 5
    assert xvlm("cp", name, "mine", "--download").code == 0
    weights = (tmp_path / "mine" / "model.safetensors").read_bytes()
    assert weights == uploaded.repos[ID].commits[0]["model.safetensors"]
    assert not (tmp_path / "mine" / "model.safetensors").is_symlink()


def test_a_folder_of_the_same_name_comes_first(
    xvlm: Run, uploaded: Hub, model: Path, tmp_path: Path
) -> None:
    (tmp_path / ID).mkdir(parents=True)
    assert "neither a run nor a model" in xvlm("cp", ID, "mine", "--download").refusal(5)
    assert xvlm("cp", model, ID).code == 0
    assert xvlm("validate", ID, "--download").code == 0
    assert uploaded.asked == []


def test_training_starts_from_a_model_of_the_hub(
    xvlm: Run, hub: Hub, pretrained: Path, world_store: Path, tmp_path: Path
) -> None:
    assert xvlm("cp", pretrained, f"hub:{ID}").code == 0
    words = (
        "finetune",
        "world",
        "--max-steps",
        "1",
        "-o",
        "run",
        f"data.root={world_store.parent}",
    )
    error = xvlm(*words, "--init", ID).refusal(5)
    assert "init.download=true" in error
    assert not (tmp_path / "run").exists()
    dry = xvlm(*words, "--init", ID, "init.download=true", "--dry-run")
    assert (dry.code, hub.fetched()) == (0, [])  # a dry run fetches nothing
    assert xvlm(*words, "--init", ID, "init.download=true").code == 0
    assert "model.safetensors" in hub.fetched()
    start = xvlm("validate", "run", "--json").document()["result"]["provenance"]["started_from"]
    assert start["place"] == f"hub:{ID}@{hub.repos[ID].sha()}"


def test_a_run_is_uploaded_with_a_page_and_comes_back(
    xvlm: Run, hub: Hub, pretrained: Path
) -> None:
    result = xvlm("cp", pretrained, f"hub:{ID}", "--json").document()["result"]
    repo = hub.repos[ID]
    assert repo.private
    assert result["created"]
    assert (result["url"], result["commit"]) == (f"{hub.endpoint}/{ID}", repo.sha())
    assert sorted(repo.commits[-1]) == [
        "MANIFEST.json",
        "README.md",
        "config.json",
        "model.safetensors",
        "provenance.json",
        "tokenizer.json",
    ]
    page = repo.commits[-1]["README.md"].decode()
    header = yaml.safe_load(page.split("---\n")[1])
    assert header["library_name"] == "xvlm"
    for said in (
        f"--checkpoint {ID} --download",
        "| pretrain, step 2 | world |",
        "| accuracy@0.5 |",
        "| command | `xvlm",
        "world (SHA-256",
    ):
        assert said in page, page

    checked = xvlm("validate", ID, "--download", "--json").document()["result"]
    assert checked["checksums"]
    assert checked["provenance"]["step"] == 2
    assert "holds a model already" in xvlm("cp", pretrained, f"hub:{ID}").refusal(2)
    assert xvlm("cp", pretrained, f"hub:{ID}", "--overwrite").code == 0


def test_a_dry_run_shows_the_page_and_asks_the_hub_nothing(
    xvlm: Run, hub: Hub, model: Path
) -> None:
    done = xvlm("cp", model, f"hub:{ID}", "--dry-run")
    assert done.code == 0
    assert "would upload config.json" in done.out
    assert "(private)" in done.out
    assert "## Provenance\n\nNot recorded." in done.out
    assert hub.asked == []


def test_what_cannot_be_uploaded_is_refused_in_one_line(
    xvlm: Run, hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "hub:owner/name" in xvlm("cp", model, "hub:shapes").refusal(2)
    assert "main branch" in xvlm("cp", model, f"hub:{ID}@v1").refusal(2)
    assert xvlm("cp", model, f"hub:{ID}", "--public").code == 0
    assert not hub.repos[ID].private
    monkeypatch.setenv("HF_TOKEN", "another-token")
    assert "HF_TOKEN" in xvlm("cp", model, "hub:owner/new").refusal(2)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in xvlm("cp", model, "hub:owner/new").refusal(2)


def test_a_model_that_was_edited_on_the_hub_is_refused(
    xvlm: Run, hub: Hub, pretrained: Path
) -> None:
    assert xvlm("cp", pretrained, f"hub:{ID}").code == 0
    repo = hub.repos[ID]
    edited = repo.commits[-1]["config.json"].replace(b'"max_words"', b'"max_words" ')
    repo.commits.append({**repo.commits[-1], "config.json": edited})
    for words in (("validate", ID), ("cp", ID, "mine")):
        assert "was changed" in xvlm(*words, "--download").refusal(5)
