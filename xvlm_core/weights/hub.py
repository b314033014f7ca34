"""Model folders on the Hugging Face hub: found in the local cache, fetched, uploaded.

Nothing is fetched unless asked (``--download``, ``init.download=true``, ``XVLM_DOWNLOAD=1``), and
then only JSON and safetensors files by their names: no code, no pickle. The endpoint, the cache
and the token are those of ``huggingface_hub`` (``HF_ENDPOINT``, ``HF_HUB_CACHE``, ``HF_TOKEN``),
which is imported only where it is needed. Imports no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xvlm_core.errors import CheckpointError, MissingToolError, OutputError, UsageError, XvlmError
from xvlm_core.train.checkpoint import MANIFEST, verify
from xvlm_core.weights.folder import CONFIG, TOKENIZER, WEIGHTS

PREFIX = "hub:"
DOWNLOAD_VARIABLE = "XVLM_DOWNLOAD"
NEEDED = (CONFIG, WEIGHTS, TOKENIZER)
FETCHED = (*NEEDED, "provenance.json", MANIFEST)
"""All that is ever fetched of a model."""

_NAME = r"[A-Za-z0-9][\w.-]*"
_ID = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[\w./-]+))?")
_CACHED = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)")
_LOGIN = "hf auth login, or HF_TOKEN=..."


@dataclass(frozen=True)
class HubId:
    """A model on the hub: ``owner/name``, and a branch, tag or commit if one is named."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


@dataclass(frozen=True)
class Fetched:
    """A model folder in the local cache, and what it is."""

    folder: Path
    hub_id: HubId
    commit: str

    @property
    def said(self) -> str:
        """For people: which model it is, to the commit."""
        return f"{PREFIX}{self.hub_id.repo}@{self.commit[:12]}"


@dataclass(frozen=True)
class Uploaded:
    """A commit that was made on the hub."""

    url: str
    commit: str
    created: bool


def parse(text: str) -> HubId | None:
    """``hub:owner/name[@revision]``, with or without ``hub:``; None: it is no such id.

    Raises:
        UsageError: ``hub:`` and no id after it.
    """
    is_said = text.startswith(PREFIX)
    match = _ID.fullmatch(text.removeprefix(PREFIX))
    if match is not None and ".." not in text:
        return HubId(match["repo"], match["revision"])
    if is_said:
        raise UsageError(
            f"{text!r} names no model on the hub",
            try_=f"{PREFIX}owner/name or {PREFIX}owner/name@v1",
        )
    return None


def may_download(asked: bool, environ: Mapping[str, str] | None = None) -> bool:
    """Whether fetching is allowed: asked for on the spot, or by ``XVLM_DOWNLOAD=1``."""
    value = (os.environ if environ is None else environ).get(DOWNLOAD_VARIABLE, "")
    return asked or value.strip().lower() not in ("", "0", "false", "no", "off")


def fetch(hub_id: HubId, *, download: bool, ask: str = "--download") -> Fetched:
    """The model folder of a hub id, from the local cache or, where allowed, from the hub.

    Args:
        hub_id: what is wanted. Without a revision: the hub's newest where downloading is allowed,
            else the newest that was fetched.
        download: allow fetching (see :func:`may_download`). Out of reach of the hub, what is in
            the cache is taken all the same.
        ask: what to type to allow it, for messages.

    Raises:
        CheckpointError: not in the cache and not to be fetched; no such model or revision; no
            right to it; the hub cannot be reached; it is no model folder of xvlm; or its files
            are not those of its manifest.
        MissingToolError: ``huggingface_hub`` is not installed.
    """
    hub = _library()
    try:
        found = hub.snapshot_download(
            hub_id.repo,
            revision=hub_id.revision,
            allow_patterns=list(FETCHED),
            local_files_only=not download,
            library_name="xvlm",
            **_places(),
        )
    except Exception as error:  # the network fails in as many ways as there are libraries below
        if not download:
            raise _not_here(hub_id, ask) from error
        raise _explain(error, hub_id, CheckpointError) from error
    folder = Path(found)
    lacking = [name for name in NEEDED if not (folder / name).is_file()]
    if lacking and not download and CONFIG not in lacking:  # an earlier fetch was cut off
        raise _not_here(hub_id, ask)
    if lacking:
        raise CheckpointError(
            f"{hub_id} on the hub is no xvlm model: it has no {', '.join(lacking)}",
            where=str(folder),
            try_="name a model that xvlm cp RUN hub:owner/name has made",
        )
    if (folder / MANIFEST).is_file():
        try:
            verify(folder)
        except CheckpointError as error:
            raise CheckpointError(
                f"{hub_id} from the hub was changed: {error.what}",
                where=str(folder),
                try_=f"delete that folder and fetch it again ({ask}), or {hub_id.repo}@REVISION",
            ) from error
    return Fetched(folder, hub_id, folder.name)


def place_of_cached(path: Path) -> str | None:
    """``hub:owner/name@commit`` of a folder in the hub's cache; None: it is no such folder."""
    path = path.absolute()
    match = _CACHED.fullmatch(path.parent.parent.name)
    if match is None or path.parent.name != "snapshots":
        return None
    return f"{PREFIX}{match['owner']}/{match['name']}@{path.name}"


def upload(
    files: Mapping[str, Path | bytes],
    hub_id: HubId,
    *,
    message: str,
    private: bool = True,
    overwrite: bool = False,
) -> Uploaded:
    """Upload files as one commit; the repository is made if it is not there.

    Args:
        files: name on the hub to a local file, or its content.
        hub_id: where to; a revision is refused.
        message: of the commit.
        private: only you see it (of a new repository; one that is there stays as it is).
        overwrite: replace the files of a model that is there. Its older commits stay.

    Raises:
        OutputError: no token, no right to write, offline; there is a model already, or something
            that is no model.
        MissingToolError: ``huggingface_hub`` is not installed.
    """
    refuse_revision(hub_id)
    hub = _library()
    if hub.get_token() is None:
        raise OutputError("no token for the hub: nothing can be uploaded", try_=_LOGIN)
    api = hub.HfApi(endpoint=_places().get("endpoint"), library_name="xvlm")
    operations = [
        hub.CommitOperationAdd(
            path_in_repo=name,
            path_or_fileobj=content if isinstance(content, bytes) else str(content),
        )
        for name, content in files.items()
    ]
    try:
        there = _files_of(api, hub_id)
        _refuse_replacing(hub_id, there, overwrite)
        if there is None:
            api.create_repo(hub_id.repo, private=private, exist_ok=True)
        done = api.create_commit(
            hub_id.repo, operations, commit_message=message, revision="main", repo_type="model"
        )
    except XvlmError:
        raise
    except Exception as error:
        raise _explain(error, hub_id, OutputError) from error
    return Uploaded(f"{api.endpoint}/{hub_id.repo}", str(done.oid), there is None)


def refuse_revision(hub_id: HubId) -> None:
    """An upload goes to the main branch.

    Raises:
        UsageError: the id names a revision.
    """
    if hub_id.revision is not None:
        raise UsageError(
            f"{hub_id}: an upload goes to the main branch", try_=f"{PREFIX}{hub_id.repo}"
        )


def _files_of(api: Any, hub_id: HubId) -> list[str] | None:
    """Names on the hub; None: there is no such repository (or none that we may see)."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        # not list_repo_files: out of reach of the hub that one tries again for half a minute
        return [file.rfilename for file in api.model_info(hub_id.repo).siblings or ()]
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None


def _refuse_replacing(hub_id: HubId, there: list[str] | None, overwrite: bool) -> None:
    others = [name for name in there or () if name not in (".gitattributes", "README.md")]
    if not others:
        return
    if CONFIG not in others:
        raise OutputError(
            f"{hub_id.repo} on the hub holds something that is no model: not replaced",
            where=", ".join(others[:3]),
            try_="another name",
        )
    if not overwrite:
        raise OutputError(
            f"{hub_id.repo} on the hub holds a model already",
            try_="another name, or --overwrite (older commits stay on the hub)",
        )


def _places() -> dict[str, Any]:
    """Endpoint and cache as the environment says now (the library reads it once, on import)."""
    places = {}
    if endpoint := os.environ.get("HF_ENDPOINT"):
        places["endpoint"] = endpoint.rstrip("/")
    if cache := os.environ.get("HF_HUB_CACHE"):
        places["cache_dir"] = cache
    return places


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingToolError(
            "the hub needs the package huggingface_hub", try_="pip install huggingface_hub"
        ) from error
    return huggingface_hub


def _not_here(hub_id: HubId, ask: str) -> CheckpointError:
    return CheckpointError(
        f"{hub_id} is no run or model here, nor in the hub's local cache, and nothing is fetched "
        "from the hub unless asked",
        try_=f"xvlm ls runs  (what is here), or {ask}  (fetches it from the hub)",
    )


def _explain(error: Exception, hub_id: HubId, kind: type[XvlmError]) -> XvlmError:
    """The hub's answer in one line, and what to type."""
    from huggingface_hub import errors

    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
    response = getattr(cause if cause is not None else error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        what = f"{hub_id} on the hub is gated: its owner grants access"
        try_ = f"ask for it on the page of {hub_id.repo}, then {_LOGIN}"
    elif isinstance(error, errors.HFValidationError):
        what = f"{hub_id.repo} is no id of the hub: {str(error).splitlines()[0][:160]}"
        try_ = f"{PREFIX}owner/name"
    elif isinstance(error, errors.RevisionNotFoundError):
        what = f"{hub_id.repo} on the hub has no revision {hub_id.revision}"
        try_ = f"{hub_id.repo}  (its newest)"
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = f"no model {hub_id.repo} on the hub, or a private one and no right to it"
        try_ = f"check the id (xvlm ls runs lists what is here); a private one: {_LOGIN}"
    elif status in (401, 403):
        what = f"the hub refuses {hub_id.repo} to this token (HTTP {status})"
        try_ = f"a token that may do it: {_LOGIN}"
    elif status is not None:
        what = f"the hub answers for {hub_id.repo} with HTTP {status}"
        try_ = "the same command later"
    else:
        reason = (str(cause or error).strip() or type(error).__name__).splitlines()[0][:160]
        what = f"the hub cannot be reached for {hub_id}: {reason}"
        try_ = "check the connection, HF_ENDPOINT and HF_HUB_OFFLINE, or name a local folder"
    return kind(what, try_=try_)
