from __future__ import annotations

import io
import tarfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest

from xvlm_core.errors import DataError
from xvlm_core.sources import tar_index
from xvlm_core.sources.tar_index import (
    TarMember,
    TarProblem,
    TarSample,
    read_samples,
    read_tar,
    split_name,
)

SHARED = Path(__file__).parents[3] / "shared" / "data"


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def write(
    path: Path,
    members: Sequence[tuple[tarfile.TarInfo | str, bytes]],
    format: int = tarfile.USTAR_FORMAT,
) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for what, data in members:
            info = member(what) if isinstance(what, str) else what
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def found(path: Path) -> list[str]:
    """Names of members; ``name! reason`` of problems."""
    return [
        f"{m.name}! {m.reason}" if isinstance(m, TarProblem) else m.name for m in read_tar(path)
    ]


def test_offsets_are_those_of_the_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [("0.jpg", b"picture"), ("0.txt", b"words")])
    data = path.read_bytes()
    members = [m for m in read_tar(path) if isinstance(m, TarMember)]
    assert [m.name for m in members] == ["0.jpg", "0.txt"]
    assert [data[m.offset : m.offset + m.size] for m in members] == [b"picture", b"words"]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_accepted(tmp_path: Path, format: int) -> None:
    name = "folder/" + "x" * 300 + ".jpg"
    path = write(tmp_path / "a.tar", [(name, b"abc"), ("kühe.txt", b"de")], format)
    members = [m for m in read_tar(path) if isinstance(m, TarMember)]
    assert [m.name for m in members] == [name, "kühe.txt"]
    assert path.read_bytes()[members[0].offset :][:3] == b"abc"


def test_nothing_that_leads_elsewhere_is_a_member(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tar",
        [
            ("../a.jpg", b"x"),
            ("b/../../a.jpg", b"x"),
            ("/etc/a.jpg", b"x"),
            ("C:a.jpg", b"x"),
            ("..\\a.jpg", b"x"),
            ("b\\a.jpg", b"x"),
            ("b\na.jpg", b"x"),
            (member("soft.jpg", tarfile.SYMTYPE, "/etc/passwd"), b""),
            (member("hard.jpg", tarfile.LNKTYPE, "../a"), b""),
            (member("pipe.jpg", tarfile.FIFOTYPE), b""),
            (member("device.jpg", tarfile.BLKTYPE), b""),
            (member("folder", tarfile.DIRTYPE), b""),
            ("./ok//a.jpg", b"x"),
        ],
    )
    assert found(path) == [
        "../a.jpg! outside the image root",
        "b/../../a.jpg! outside the image root",
        "/etc/a.jpg! absolute path",
        "C:a.jpg! absolute path",
        "..\\a.jpg! outside the image root",
        "b\\a.jpg! not a file name",
        "b\na.jpg! not a file name",
        "soft.jpg! a link",
        "hard.jpg! a link",
        "pipe.jpg! a pipe",
        "device.jpg! a device",
        "ok/a.jpg",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]  # nothing is unpacked


def test_a_name_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    with tarfile.open(
        tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT, encoding="latin-1"
    ) as tar:
        tar.addfile(member("kühe.jpg"), io.BytesIO())
    (problem,) = read_tar(tmp_path / "a.tar")
    assert isinstance(problem, TarProblem)
    assert problem.reason == "not UTF-8"


def test_sparse_members_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [("a.jpg", b"x" * 600)], tarfile.PAX_FORMAT)
    info = member("a.jpg")
    info.size, info.pax_headers = 600, {"GNU.sparse.map": "0,600", "GNU.sparse.size": "600"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"x" * 600))
    assert found(path) == ["a.jpg! a sparse file"]


def test_of_two_members_of_one_name_the_first_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [("0.jpg", b"one"), ("0.txt", b""), ("./0.jpg", b"other")])
    members = list(read_tar(path))
    assert members[0] == TarMember("0.jpg", 512, 3)
    assert members[2] == TarProblem("0.jpg", "duplicate member")


def test_a_member_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.tar", [("0.jpg", b"123"), ("1.jpg", b"1234")])
    monkeypatch.setattr(tar_index, "MAX_MEMBER", 3)
    assert found(path) == ["0.jpg", "1.jpg! too large"]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (512 + 1024 + 512 + 300, ["0.jpg", "1.jpg! unexpected end"]),  # in the bytes of 1.jpg
        (512 + 1024 + 300, ["0.jpg", "! unexpected end"]),  # in its header
        (512 + 1024, ["0.jpg", "! unexpected end"]),  # before it: no end mark
        (512 + 700, ["0.jpg! unexpected end"]),
    ],
)
def test_a_cut_tar_gives_what_is_whole_and_one_problem(
    tmp_path: Path, length: int, expected: list[str]
) -> None:
    path = write(tmp_path / "a.tar", [("0.jpg", b"x" * 1000), ("1.jpg", b"x" * 1000)])
    path.write_bytes(path.read_bytes()[:length])
    assert found(path) == expected


def test_a_damaged_header_ends_the_tar_aloud(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [("0.jpg", b"x"), ("1.jpg", b"x"), ("2.jpg", b"x")])
    data = bytearray(path.read_bytes())
    data[1024 + 148] ^= 1  # the checksum of the second header
    path.write_bytes(data)
    assert found(path) == ["0.jpg", "! damaged header"]


def test_what_follows_the_end_mark_is_said(tmp_path: Path) -> None:
    one = write(tmp_path / "a.tar", [("0.jpg", b"x")]).read_bytes()
    (tmp_path / "a.tar").write_bytes(one + one)
    assert found(tmp_path / "a.tar") == ["0.jpg", "! data after the end"]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("-1024", ["0.jpg", "! damaged header"]),  # the next header would be the one before
        ("9" * 30, ["0.jpg", "a.jpg! unexpected end"]),
        ("x", ["0.jpg", "a.jpg", "b.jpg"]),  # no number: as if it were not there
    ],
)
def test_a_hostile_size_ends_the_reading(tmp_path: Path, size: str, expected: list[str]) -> None:
    info = member("a.jpg")
    info.pax_headers = {"size": size}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member("0.jpg"))
        tar.addfile(info)
        tar.addfile(member("b.jpg"))
    assert found(tmp_path / "a.tar") == expected


def test_a_header_that_claims_to_be_huge_is_not_read(tmp_path: Path) -> None:
    info = member("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    info.size = 1 << 26
    with open(tmp_path / "a.tar", "wb") as file:
        file.write(member("0.jpg").tobuf())
        file.write(info.tobuf(format=tarfile.GNU_FORMAT))
        file.truncate(1 << 27)  # sparse on disk
    tracemalloc.start()
    assert found(tmp_path / "a.tar") == ["0.jpg", "! damaged header"]
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "is an empty file"),
        (b"\x1f\x8b\x08" + b"x" * 600, r"is compressed \(gzip\)"),
        (b"BZh9" + b"x" * 600, r"is compressed \(bzip2\)"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 600, r"is compressed \(zstd\)"),
        (b"<html>" * 200, "is not a tar file"),
        (b"short", "is not a tar file"),
    ],
)
def test_what_is_no_plain_tar_is_an_error(tmp_path: Path, data: bytes, what: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"a.tar {what}"):
        list(read_tar(path))


def test_a_gzip_tar_says_what_to_type(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(member("0.jpg"))
    with pytest.raises(DataError) as error:
        list(read_tar(tmp_path / "a.tar"))
    assert error.value.try_ == f"gunzip {tmp_path / 'a.tar'}"


def test_a_missing_tar_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.tar"):
        list(read_tar(tmp_path / "none.tar"))


def test_a_tar_without_members_has_none(tmp_path: Path) -> None:
    assert found(write(tmp_path / "a.tar", [])) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0.jpg", ("0", "jpg")),
        ("a/b.c/0.Seg.PNG", ("a/b.c/0", "seg.png")),
        ("a.b", ("a", "b")),
        ("readme", None),
        ("a/.hidden.jpg", None),
        ("._0.jpg", None),
    ],
)
def test_the_key_ends_at_the_first_dot_of_the_base_name(
    name: str, expected: tuple[str, str] | None
) -> None:
    assert split_name(name) == expected


def test_members_of_one_key_are_a_sample_wherever_they_stand(tmp_path: Path) -> None:
    names = ["0.jpg", "1.jpg", "readme", "0.txt", "0.JPG", "1.cls"]
    path = write(tmp_path / "a.tar", [(name, b"x") for name in names])
    samples = list(read_samples(path))
    assert samples[0] == TarProblem("0.JPG", "duplicate member")
    assert [
        (s.key, [m.name for m in s.members.values()]) for s in samples if isinstance(s, TarSample)
    ] == [("0", ["0.jpg", "0.txt"]), ("1", ["1.jpg", "1.cls"])]


def test_the_sample_in_which_a_tar_is_cut_is_marked(tmp_path: Path) -> None:
    names = ["0.jpg", "0.txt", "1.jpg", "1.txt"]
    path = write(tmp_path / "a.tar", [(name, b"x" * 100) for name in names])
    path.write_bytes(path.read_bytes()[: 3 * 1024 + 200])
    samples = [s for s in read_samples(path) if isinstance(s, TarSample)]
    assert [(s.key, s.cut) for s in samples] == [("0", False), ("1", True)]


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared samples are absent")
def test_shared_tars() -> None:
    problems = [m for m in read_tar(SHARED / "hostile" / "evil.tar") if isinstance(m, TarProblem)]
    assert [p.reason for p in problems].count("outside the image root") == 4
    assert [p.reason for p in problems].count("a link") == 2
    assert len(problems) == 9
    cut = list(read_tar(SHARED / "hostile" / "truncated.tar"))
    assert [m for m in cut if isinstance(m, TarProblem)] == [TarProblem("", "unexpected end")]
