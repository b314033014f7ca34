from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from xvlm_core.errors import DataError
from xvlm_core.sources import strict_json
from xvlm_core.sources.strict_json import iter_array, iter_batches, iter_members

KEYS = ("images", "annotations")
DOCUMENT = {
    "info": {"images": [1, 2]},
    "annotations": [
        {"id": 1, "bbox": [0.5, 1e3, -2, 4], "segmentation": [[1, 2.5], [3, 4]]},
        {"id": 2, "text": 'a "}, {"id" in a text'},
        {"text": "another first key", "id": 3},
        {"id": 4, "parts": [{"id": 41}, {"id": 42}], "segmentation": {"counts": [1], "size": []}},
        {"id": 5, "text": "héllo 世界 🦓 \\ /"},
        [6],
        {},
        "seven",
        8,
        {"id": 9, "segmentation": []},
    ],
    "licenses": "none",
    "images": [{"id": number, "url": "http://a.b/c?d=1:2"} for number in range(40)],
    "empty": [],
}


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("piece", [1, 7, 64, 200, 1 << 20])
@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("ascii", [True, False])
def test_members_are_those_of_the_document_wherever_pieces_of_the_file_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, indent: int | None, ascii: bool
) -> None:
    monkeypatch.setattr(strict_json, "_PIECE", piece)
    text = json.dumps(DOCUMENT, indent=indent, ensure_ascii=ascii)
    found = list(iter_members(write(tmp_path / "a.json", "\ufeff" + text), KEYS))
    expected = [(key, member) for key in ("annotations", "images") for member in DOCUMENT[key]]
    assert found == expected

    array = write(tmp_path / "b.json", json.dumps(DOCUMENT["annotations"], indent=indent))
    assert list(iter_array(array)) == DOCUMENT["annotations"]


@pytest.mark.parametrize("piece", [7, 1 << 20])
def test_keys_left_out_are_left_out_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(strict_json, "_PIECE", piece)
    path = write(tmp_path / "a.json", json.dumps(DOCUMENT))
    without = frozenset({"segmentation", "bbox"})
    found = [member for _, member in iter_members(path, ("annotations",), without=without)]
    assert found[0] == {"id": 1}
    assert found[3] == {"id": 4, "parts": [{"id": 41}, {"id": 42}]}
    assert found[9] == {"id": 9}
    assert [found[i] for i in (1, 2, 4, 5, 6, 7, 8)] == [
        DOCUMENT["annotations"][i] for i in (1, 2, 4, 5, 6, 7, 8)
    ]


def test_every_array_that_is_there_is_told_of(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '{"b": 3, "c": [], "a": [1], "d": {"a": [2]}}')
    assert list(iter_batches(path, ("a", "b", "c", "e"))) == [
        ("b", None),
        ("c", []),
        ("a", []),
        ("a", [1]),
    ]
    with pytest.raises(DataError, match="b is no list"):
        list(iter_members(path, ("a", "b")))


@pytest.mark.parametrize("odd", [{}, {"other": 1}, {"text": 'a "}, {"id": 1'}, {"x": [{"id": 1}]}])
def test_members_come_many_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: dict[str, Any]
) -> None:
    monkeypatch.setattr(strict_json, "_PIECE", 1 << 12)
    members = [{"id": n, "segmentation": [[1, 2]]} for n in range(2000)]
    members[1000] |= odd
    path = write(tmp_path / "a.json", json.dumps({"a": members}))
    batches = [batch for _, batch in iter_batches(path, ("a",))]
    assert [member for batch in batches for member in batch or ()] == members
    assert len(batches) < len(members) / 8


def test_numbers_that_are_none_are_accepted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '{"a": [{"x": NaN}, {"x": -Infinity}, {"x": 1}]}')
    values = [member["x"] for _, member in iter_members(path, ("a",))]
    assert math.isnan(values[0])
    assert values[1:] == [-math.inf, 1]


@pytest.mark.parametrize(
    ("text", "before", "message"),
    [
        ('{"a": [{"x": 1}, {"x": 2}, {"x": 3, "x": 4}]}', 2, "repeated key: x"),
        ('{"a": [{"x": 1}, {"x": {"y": 1, "y": 1}}]}', 1, "repeated key: y"),
        ('{"a": [{"x": 1}], "a": []}', 1, r"repeated key: a \(character 18\)"),
        ('{"b": {"y": 1, "y": 2}, "a": []}', 0, "repeated key: y"),
        ('{"a": [{"x": 1}, {"x": 2}, {"x": 3', 2, "Expecting ',' delimiter"),
        ('{"a": [{"x": 1}, {"x": 2}', 2, r"it ends in the middle \(character 25\)"),
        ('{"a": [{"x": 1}, {"x": 2}]', 2, r"ends in the middle \(character 26\)"),
        ('{"a": [{"x": 1}, {"x" 2}, {"x": 3}]}', 1, r"Expecting ':' delimiter \(character 22\)"),
        ('{"a": [{"x": 1} {"x": 2}]}', 1, r"a comma or \] is missing \(character 16\)"),
        ('{"a": [{"x": 1},]}', 1, r"Expecting value \(character 16\)"),
        ('{"a": [1] "b": 2}', 1, "a comma or } is missing"),
        ('{"a" [1]}', 0, "a colon is missing"),
        ('{"a": [1], 2: 3}', 1, "a key in double quotes is missing"),
        ('{"a": [1]} {', 1, r"more after the end of the object \(character 11\)"),
        ('{"a": ' + "[" * 100_000, 0, "nested too deep"),
        ('{"a": [' + "1" * 5000 + "]}", 0, "digits"),
        ("", 0, "is an empty file"),
        (" \n", 0, "is an empty file"),
        ("[1]", 0, "is not a JSON object but a list"),
        ("{broken", 0, "not valid JSON"),
        ('{"a": ["é"]}'.encode("utf-16"), 0, "is UTF-16, not UTF-8"),
        (b'{"a": ["\xff"]}', 0, "is not UTF-8"),
    ],
)
@pytest.mark.parametrize("piece", [3, 1 << 20])
def test_what_is_wrong_is_one_line_after_all_that_was_right(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str | bytes,
    before: int,
    message: str,
    piece: int,
) -> None:
    monkeypatch.setattr(strict_json, "_PIECE", piece)
    path = write(tmp_path / "a.json", text)
    found: list[Any] = []
    with pytest.raises(DataError, match=message) as caught:
        found.extend(member for _, member in iter_members(path, ("a",)))
    assert len(found) == before
    assert "a.json" in caught.value.what
    assert "\n" not in caught.value.what


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.json: No such file"):
        list(iter_members(tmp_path / "none.json", ("a",)))
    with pytest.raises(DataError, match="is not a JSON array"):
        list(iter_array(write(tmp_path / "a.json", "{}")))


def test_a_file_larger_than_memory_is_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strict_json, "_PIECE", 1 << 14)
    members = [{"id": n, "text": "x" * 50, "segmentation": [[1.5] * 40]} for n in range(5000)]
    path = write(tmp_path / "a.json", json.dumps({"a": members}))
    tracemalloc.start()
    total = sum(m["id"] for _, m in iter_members(path, ("a",), without=frozenset({"text"})))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == sum(range(5000))
    assert peak < path.stat().st_size / 4
