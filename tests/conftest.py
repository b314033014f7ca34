"""Shared fixtures. ``pytest tests/golden --golden-root DIR`` runs recorded cases of a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# a busy machine makes one case of a property slow, which says nothing of the property
settings.register_profile("xvlm", deadline=None)
settings.load_profile("xvlm")

# torch looks up the name of every address that it connects to; a name server that does not answer
# costs 5 s each time, and more than a second makes the tests of silent ranks fail
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it warns of that

# two threads add in an order of their own: tests compare bits; processes of tests share the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parents[1]
OWN_CASES = REPOSITORY / "tests" / "golden" / "cases"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-root",
        default=None,
        help="folder of recorded cases (default: ../shared/golden where present)",
    )


def golden_root_of(config: pytest.Config) -> Path | None:
    given = config.getoption("--golden-root")
    if given is not None:
        root = Path(given)
        if not root.is_dir():
            raise pytest.UsageError(f"--golden-root: no folder {root}")
        return root
    default = REPOSITORY.parent / "shared" / "golden"
    return default if default.is_dir() else None


@pytest.fixture(scope="session")
def golden_root(request: pytest.FixtureRequest) -> Path | None:
    """The folder of recorded cases, or None."""
    return golden_root_of(request.config)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of agreed material beside the repository; skips where absent."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the repository")
    return folder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``pretrain_case``: every recorded pre-training case, ours and those of the golden root."""
    if "pretrain_case" not in metafunc.fixturenames:
        return
    roots = [OWN_CASES]
    root = golden_root_of(metafunc.config)
    if root is not None:
        roots.append(root)
    folders = [
        folder
        for root in roots
        for folder in sorted(root.glob("pretrain_*"))
        if (folder / "io.safetensors").is_file()
    ]
    ids = [f"{folder.parent.name}-{folder.name}" for folder in folders]
    metafunc.parametrize("pretrain_case", folders, ids=ids)
