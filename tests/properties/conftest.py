"""After a run of the whole folder: were enough inputs tried?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.properties.cases import TRIED, WANTED

FOLDER = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def enough_cases(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails if every property of the folder ran, but on fewer inputs than promised."""
    yield
    modules = {path.stem for path in FOLDER.glob("test_*.py")}
    ran = {name.split(".")[-2] for name in TRIED}
    if ran == modules and all(TRIED.values()) and not request.session.testsfailed:
        assert TRIED.total() >= WANTED, TRIED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TRIED.total():
        terminalreporter.write_line(
            f"properties: {TRIED.total():,} generated cases, {len(TRIED)} properties"
        )
