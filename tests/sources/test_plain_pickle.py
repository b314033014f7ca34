from __future__ import annotations

import copyreg
import os
import pickle
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from xvlm_core.errors import DataError
from xvlm_core.sources import plain_pickle
from xvlm_core.sources.plain_pickle import read_plain_pickle

SHARED = Path(__file__).parents[3] / "shared" / "data" / "hostile"
TOUCH = "echo > PWNED"
VALUE = {
    "refs": [{"ref_id": 7, "sent": "löwe left", "area": 1.5, "none": None, "raw": b"\x00\xff"}] * 2,
    "big": 1 << 80,
    "negative": -70000,
    3: (True, False, (), ("a",), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    "long": "x" * 300,
    "empty": [{}, [], ""],
}


class Calls:
    """Runs something when it is unpickled."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, data: bytes) -> Path:
    path = folder / "refs(unc).p"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back_from_every_protocol(tmp_path: Path, protocol: int) -> None:
    value = dict(VALUE)
    if protocol < 3:  # bytes are written as a call there
        value["refs"] = [{"ref_id": 7, "sent": "löwe left"}]
    found = read_plain_pickle(write(tmp_path, pickle.dumps(value, protocol)))
    assert found == value
    assert [type(v) for v in found[3]] == [bool, bool, *[tuple] * 5]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"S'caf\\xc3\\xa9'\n.", "café"),
        (b"S'caf\\xe9'\n.", "café"),
        (b"S'it\\'s \\\\ \\n'\n.", "it's \\ \n"),
        (b"T\x05\x00\x00\x00caf\xc3\xa9.", "café"),
        (b"\x80\x02U\x04caf\xe9.", "café"),
        (b"Vcaf\\u00e9\n.", "café"),
    ],
)
def test_byte_strings_of_python_2_are_utf8_or_else_latin1(
    tmp_path: Path, data: bytes, text: str
) -> None:
    assert read_plain_pickle(write(tmp_path, data)) == text


CALLS = {
    **{
        f"os.system {n}": (pickle.dumps([Calls(os.system, (TOUCH,))], n), "system")
        for n in (0, 2, 4)
    },
    "eval": (
        pickle.dumps(Calls(eval, ("open('PWNED', 'w').close()",)), 2),
        "__builtin__.eval",
    ),
    "instance": (b"(S'echo > PWNED'\nios\nsystem\n.", "os.system"),
    "object": (b"(cos\nsystem\nS'echo > PWNED'\no.", "os.system"),
    "by names on the stack": (
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0cecho > PWNED\x85R.",
        "os.system",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_a_pickle_wants_to_call_is_named_and_not_called(inside: Path, name: str) -> None:
    data, wanted = CALLS[name]
    with pytest.raises(DataError) as caught:
        read_plain_pickle(write(inside, data))
    assert "refs(unc).p wants to load " in caught.value.what
    assert f"{wanted}: not read" in caught.value.what
    assert not (inside / "PWNED").exists()
    pickle.loads(data)  # the danger is real
    assert (inside / "PWNED").exists()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"Psomething\n.", "persistent id"),
        (b"S'something'\nQ.", "persistent id"),
        (b"\x80\x02\x82\xf0.", "extension registry"),
        (b"\x80\x02\x83\xf0\x00.", "extension registry"),
        (b"\x80\x02\x84\xf0\x00\x00\x00.", "extension registry"),
        (b"NN\x85R.", "call a function"),
        (b"N}b.", "state of an object"),
        (b"N)\x81.", "make an object"),
        (b"N)}\x92.", "make an object"),
        (b"(NNo.", "make an object"),
        (pickle.dumps({1, 2}, 4), "a set"),
        (pickle.dumps(frozenset({1}), 4), "a set"),
        (pickle.dumps(bytearray(b"a"), 5), "bytearray"),
        (b"\x80\x05\x97.", "buffer"),
        (b"\x80\x05C\x01a\x98.", "buffer"),
    ],
)
def test_whatever_is_not_plain_is_refused(tmp_path: Path, data: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        read_plain_pickle(write(tmp_path, data))
    assert caught.value.what.endswith(": not read")
    assert caught.value.exit_code == 4


def test_a_registered_extension_is_not_looked_up(inside: Path) -> None:
    data = b"\x80\x02\x82\xf0U\x0cecho > PWNED\x85R."
    copyreg.add_extension("os", "system", 0xF0)
    try:
        with pytest.raises(DataError, match="extension registry"):
            read_plain_pickle(write(inside, data))
        assert not (inside / "PWNED").exists()
        pickle.loads(data)  # the danger is real
    finally:
        copyreg.remove_extension("os", "system", 0xF0)
    assert (inside / "PWNED").exists()


def test_a_name_that_would_move_the_cursor_is_shown_harmless(tmp_path: Path) -> None:
    name = "\x1b[2J" + "x" * 1000
    data = b"\x80\x04\x8c\x02os" + pickle.SHORT_BINUNICODE + bytes([200])
    with pytest.raises(DataError) as caught:
        read_plain_pickle(write(tmp_path, data + name[:200].encode() + b"\x93."))
    assert "os.?[2Jxxx" in caught.value.what
    assert len(caught.value.what) < 200


# ---------------------------------------------------------------------- damage


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_is_cut_off_anywhere_is_damaged(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps([{"ref_id": 1, "sent": "a löwe", "box": [1.5, 1 << 40]}], protocol)
    for length in range(len(data)):
        with pytest.raises(DataError, match="damaged pickle") as caught:
            read_plain_pickle(write(tmp_path, data[:length]))
        assert "\n" not in caught.value.what


def test_changed_bytes_give_a_plain_value_or_one_clear_error(tmp_path: Path) -> None:
    rng = random.Random(0)
    value = [{"ref_id": 1, "sent": "löwe", "t": (1, 2.5, None, True)}]
    failed = 0
    for protocol in (0, 2, 4):
        data = pickle.dumps(value, protocol)
        for _ in range(1000):
            changed = bytearray(data)
            for _ in range(rng.randint(1, 3)):
                changed[rng.randrange(len(data))] = rng.randrange(256)
            try:
                read_plain_pickle(write(tmp_path, bytes(changed)))
            except DataError:
                failed += 1
    assert failed > 1000


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.p", tmp_path):
        with pytest.raises(DataError, match=f"there is no file {path}"):
            read_plain_pickle(path)


# ---------------------------------------------------------------------- bounds


def test_a_huge_memo_index_reserves_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path, b"\x80\x02]r\xff\xff\xff\x7f.")
    tracemalloc.start()
    try:
        assert read_plain_pickle(path) == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("op", [b"\x8d", b"\x8e", b"\x95"])
def test_a_huge_length_reserves_no_memory(tmp_path: Path, op: bytes) -> None:
    path = write(tmp_path, b"\x80\x04" + op + (1 << 40).to_bytes(8, "little") + b"abc.")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="damaged pickle"):
            read_plain_pickle(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.",
        b"\x80\x02}()" + b"\x85" * 300_000 + b"Nu.",
        b"()" + b"\x85" * 300_000 + b"Nd.",
    ],
)
def test_deep_tuples_are_no_keys_and_do_not_crash(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError, match="a tuple as key of a dict"):
        read_plain_pickle(write(tmp_path, data))


def test_lists_that_share_lists_stay_small(tmp_path: Path) -> None:
    value: list[Any] = ["ha"]
    for _ in range(100):
        value = [value] * 10
    found = read_plain_pickle(write(tmp_path, pickle.dumps(value, 2)))
    assert found[0] is found[9]


def test_instructions_and_bytes_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, pickle.dumps([[] for _ in range(50)], 2))
    assert len(read_plain_pickle(path)) == 50
    monkeypatch.setattr(plain_pickle, "MAX_STEPS", 60)
    with pytest.raises(DataError, match="more than 60 instructions: not read"):
        read_plain_pickle(path)
    monkeypatch.setattr(plain_pickle, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(DataError, match="is larger than"):
        read_plain_pickle(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared")
def test_hostile_samples(inside: Path) -> None:
    with pytest.raises(DataError, match=r"wants to load io\.open: not read"):
        read_plain_pickle(SHARED / "evil_refs(unc).p")
    with pytest.raises(DataError, match="damaged pickle"):
        read_plain_pickle(SHARED / "bad_refs(unc).p")
    assert not (inside / "PWNED").exists()
