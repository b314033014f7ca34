"""Models on the hub: nothing is fetched unless asked, and then no code; uploads are one commit."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest

from tests.weights.fake_hub import Hub, serving, use
from tests.weights.test_folder import written
from xvlm_core.errors import CheckpointError, OutputError, UsageError
from xvlm_core.weights.folder import load_model_folder
from xvlm_core.weights.hub import HubId, fetch, may_download, parse, place_of_cached, upload

MODEL = HubId("owner/shapes")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as running:
        use(running, monkeypatch, tmp_path / "cache")
        yield running


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("model")
    written(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("owner/name", HubId("owner/name")),
        ("hub:owner/name", HubId("owner/name")),
        ("owner/name.v1@main", HubId("owner/name.v1", "main")),
        ("hub:o/n@refs/pr/1", HubId("o/n", "refs/pr/1")),
        ("name", None),
        ("./runs/x", None),
        ("../x", None),
        ("/a/b", None),
        ("a/b/c", None),
        ("~/x", None),
        ("a/../b", None),
        ("https://host/x", None),
        ("newest-pretrain", None),
    ],
)
def test_what_is_an_id(text: str, found: HubId | None) -> None:
    assert parse(text) == found
    if found is not None:
        assert parse(str(found)) == found


@pytest.mark.parametrize("text", ["hub:", "hub:name", "hub:../x", "hub:a/b/c", "hub:a/b@"])
def test_a_wrong_id_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names no model on the hub"):
        parse(text)


@pytest.mark.parametrize(
    ("value", "allowed"), [(None, False), ("", False), ("0", False), ("1", True), ("yes", True)]
)
def test_fetching_is_allowed_by_the_environment(value: str | None, allowed: bool) -> None:
    environ = {} if value is None else {"XVLM_DOWNLOAD": value}
    assert may_download(False, environ) is allowed
    assert may_download(True, environ)


def test_nothing_is_fetched_unless_asked_and_then_it_stays(
    hub: Hub, files: dict[str, bytes]
) -> None:
    repo = hub.add(MODEL.repo, dict(files))
    with pytest.raises(CheckpointError, match="nothing is fetched") as caught:
        fetch(MODEL, download=False, ask="init.download=true")
    assert "init.download=true" in str(caught.value.try_)
    assert hub.asked == []

    fetched = fetch(MODEL, download=True)
    assert fetched.commit == repo.sha()
    assert fetched.said == f"hub:owner/shapes@{repo.sha()[:12]}"
    assert load_model_folder(fetched.folder).info.about == "für Menschen"
    assert place_of_cached(fetched.folder) == f"hub:owner/shapes@{repo.sha()}"

    hub.asked.clear()
    assert fetch(MODEL, download=False) == fetched
    assert hub.asked == []


def test_only_json_and_safetensors_files_are_fetched(hub: Hub, files: dict[str, bytes]) -> None:
    unwanted = {
        "modeling.py": b"raise SystemExit",
        "pytorch_model.bin": b"pickle",
        "evil/config.json": b"{}",
        "optimizer.safetensors": b"",
    }
    hub.add(MODEL.repo, {**files, **unwanted})
    folder = fetch(MODEL, download=True).folder
    assert sorted(hub.fetched()) == sorted(files)
    assert sorted(path.name for path in folder.rglob("*")) == sorted(files)


def test_a_newer_commit_is_seen_where_asked_and_an_older_one_can_be_named(
    hub: Hub, files: dict[str, bytes]
) -> None:
    repo = hub.add(MODEL.repo, dict(files))
    old = fetch(MODEL, download=True)
    changed = files["config.json"].replace("für Menschen".encode(), b"newer")
    repo.commits.append({**files, "config.json": changed})
    assert fetch(MODEL, download=False) == old
    new = fetch(MODEL, download=True)
    assert load_model_folder(new.folder).info.about == "newer"
    assert new.commit == repo.sha()
    named = fetch(HubId(MODEL.repo, old.commit), download=False)
    assert load_model_folder(named.folder).info.about == "für Menschen"


def test_out_of_reach_of_the_hub_the_cache_serves(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(MODEL.repo, dict(files))
    fetched = fetch(MODEL, download=True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    assert fetch(MODEL, download=True) == fetched
    with pytest.raises(CheckpointError, match="cannot be reached for owner/other") as caught:
        fetch(HubId("owner/other"), download=True)
    assert "connection" in str(caught.value.try_)
    assert "\n" not in caught.value.what


def test_a_fetch_that_was_cut_off_is_not_taken_for_whole(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(MODEL.repo, dict(files))
    folder = fetch(MODEL, download=True).folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="nothing is fetched"):
        fetch(MODEL, download=False)
    assert (fetch(MODEL, download=True).folder / "model.safetensors").is_file()


def test_older_libraries_give_a_cut_off_fetch_as_it_is(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes(files["config.json"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **b: str(tmp_path))
    with pytest.raises(CheckpointError, match="nothing is fetched"):
        fetch(MODEL, download=False)
    with pytest.raises(CheckpointError, match="is no xvlm model"):
        fetch(MODEL, download=True)


def test_a_file_that_is_not_that_of_the_manifest_is_noticed(
    hub: Hub, files: dict[str, bytes]
) -> None:
    listed = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    manifest = json.dumps({"schema": 1, "files": listed}).encode()
    repo = hub.add(MODEL.repo, {**files, "MANIFEST.json": manifest})
    fetch(MODEL, download=True)
    edited = files["config.json"].replace(b"shapes", b"tables")
    repo.commits.append({**repo.commits[-1], "config.json": edited})
    with pytest.raises(CheckpointError, match=r"was changed: .*config\.json"):
        fetch(MODEL, download=True)


@pytest.mark.parametrize(
    ("how", "hub_id", "what", "try_"),
    [
        ("absent", MODEL, "no model owner/shapes on the hub", "hf auth login"),
        ("private", MODEL, "no model owner/shapes on the hub", "hf auth login"),
        ("gated", MODEL, "is gated", "hf auth login"),
        ("there", HubId("owner/shapes", "v9"), "has no revision v9", "owner/shapes"),
        ("no model", MODEL, "is no xvlm model: it has no config.json, model", "xvlm cp RUN hub:"),
        ("failing", MODEL, "HTTP 500", "later"),
        ("there", HubId("owner/a--b"), "is no id of the hub", "hub:owner/name"),
    ],
)
def test_what_cannot_be_fetched_says_why_and_what_to_type(
    hub: Hub,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    hub_id: HubId,
    what: str,
    try_: str,
) -> None:
    if how != "absent":
        content = {"README.md": b"hello"} if how == "no model" else dict(files)
        hub.add(MODEL.repo, content, private=how == "private", gated=how == "gated")
    if how == "failing":
        hub.failing = 500
    monkeypatch.setenv("HF_TOKEN", "another-token")
    with pytest.raises(CheckpointError) as caught:
        fetch(hub_id, download=True)
    assert what in caught.value.what
    assert "\n" not in caught.value.what
    assert try_ in str(caught.value.try_)


@pytest.mark.parametrize("large", [(), (".safetensors",)], ids=["regular", "large files"])
def test_an_upload_is_one_commit_and_comes_back(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, large: tuple[str, ...]
) -> None:
    hub.large = large
    (tmp_path / "w").write_bytes(files["model.safetensors"])
    done = upload({**files, "model.safetensors": tmp_path / "w"}, MODEL, message="xvlm cp")
    repo = hub.repos[MODEL.repo]
    assert done.created
    assert (done.commit, done.url) == (repo.sha(), f"{hub.endpoint}/owner/shapes")
    assert repo.private
    assert len(repo.commits) == 2  # the empty one, and ours
    assert repo.commits[-1] == files
    assert load_model_folder(fetch(MODEL, download=True).folder).info.about == "für Menschen"
    assert bool(hub.objects) == bool(large)


def test_a_model_on_the_hub_is_replaced_only_when_asked(hub: Hub, files: dict[str, bytes]) -> None:
    repo = hub.add(MODEL.repo, dict(files))
    with pytest.raises(OutputError, match="holds a model already") as caught:
        upload({"config.json": b"{}"}, MODEL, message="x")
    assert "--overwrite" in str(caught.value.try_)
    assert len(repo.commits) == 1
    assert not upload({"config.json": b"{}"}, MODEL, message="x", overwrite=True).created
    assert repo.commits[-1]["config.json"] == b"{}"
    assert not repo.private  # one that is there stays as it is

    other = hub.add("owner/data", {"rows.csv": b"1"})
    with pytest.raises(OutputError, match="no model: not replaced"):
        upload({"config.json": b"{}"}, HubId("owner/data"), message="x", overwrite=True)
    assert len(other.commits) == 1


def test_an_upload_without_the_right_to_it_is_refused(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="main branch"):
        upload(files, HubId("owner/shapes", "v1"), message="x")
    monkeypatch.setenv("HF_TOKEN", "another-token")
    hub.add(MODEL.repo, {})
    for hub_id in (HubId("owner/new"), MODEL):
        with pytest.raises(OutputError) as caught:
            upload(files, hub_id, message="x")
        assert "HF_TOKEN" in str(caught.value.try_)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    hub.asked.clear()
    with pytest.raises(OutputError, match="no token"):
        upload(files, MODEL, message="x")
    assert hub.asked == []


def test_the_library_is_imported_only_where_it_is_needed() -> None:
    code = (
        "import sys; from xvlm_core.weights import hub; hub.parse('a/b'); "
        "print('huggingface_hub' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
