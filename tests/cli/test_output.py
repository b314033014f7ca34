from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from xvlm_cli import output
from xvlm_core.errors import DataError, OutputError


def test_one_document_also_with_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    out = output.start(json_document=False)
    assert output.begin("ls", json_document=True) is out
    out.warn("mind this")
    out.result({"path": Path("a"), "names": {"b", "a"}}, "for people")
    error = DataError("broken", where="here", try_="that", details=["one", "two"])
    assert out.finish(error) == 4
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "schema": "xvlm.ls/1",
        "ok": False,
        "result": {"path": "a", "names": ["a", "b"]},
        "warnings": ["mind this"],
        "error": {
            "code": "data",
            "what": "broken",
            "where": "here",
            "try": "that",
            "details": ["one", "two"],
            "exit_code": 4,
        },
    }
    assert captured.err.splitlines() == [
        "Warning: mind this",
        "Error: broken",
        "  one",
        "  two",
        "Where: here",
        "Try: that",
    ]


def test_people_get_the_text_on_stdout_and_notes_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.start(json_document=False)
    out = output.begin("ls", json_document=False)
    out.note("by the way")
    out.result({"a": 1}, ["first", "second"])
    assert out.finish() == 0
    captured = capsys.readouterr()
    assert captured.out == "first\nsecond\n"
    assert captured.err == "by the way\n"


def test_quiet_keeps_warnings_and_drops_notes(capsys: pytest.CaptureFixture[str]) -> None:
    output.start(json_document=False)
    out = output.begin("ls", json_document=False, quiet=True)
    out.note("by the way")
    out.warn("mind this")
    out.finish()
    assert capsys.readouterr().err == "Warning: mind this\n"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EROFS, "not permitted"),
        (errno.EACCES, "not permitted"),
        (errno.ENOTDIR, "no place to write"),
    ],
)
def test_a_full_or_forbidden_place_is_an_output_error(number: int, words: str) -> None:
    error = output.as_user_error(OSError(number, "so it is", "/some/file"))
    assert isinstance(error, OutputError)
    assert error.exit_code == 2
    assert error.where == "/some/file"
    assert words in error.what
    assert error.try_


def test_other_system_errors_are_bugs() -> None:
    assert output.as_user_error(OSError(errno.EBADF, "odd")) is None


def test_a_folder_with_something_in_it_is_refused_unless_told(tmp_path: Path) -> None:
    output.refuse_nonempty(tmp_path / "new", overwrite=False)
    output.refuse_nonempty(tmp_path, overwrite=False)
    (tmp_path / "x").touch()
    with pytest.raises(OutputError, match="not empty"):
        output.refuse_nonempty(tmp_path, overwrite=False)
    output.refuse_nonempty(tmp_path, overwrite=True)
    output.refuse_nonempty(tmp_path, overwrite=False, resume=True)
    with pytest.raises(OutputError, match="is a file"):
        output.refuse_nonempty(tmp_path / "x", overwrite=True)


def test_messages_do_not_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.start(json_document=False).warn("a\x1b[31mb\u202ec")
    assert capsys.readouterr().err == "Warning: a\\u001b[31mb\\u202ec\n"
