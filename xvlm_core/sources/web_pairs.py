"""Picture-text pairs from the web: Conceptual Captions 3M and 12M, SBU, and the like.

Two forms. What img2dataset wrote: ``00000.tar`` (or a folder ``00000``), and beside it
``00000.parquet``, which also has the rows that failed, and ``00000_stats.json``. Or the lists as
published, with pictures that lie on disk already: ``caption TAB url`` (CC3M), ``url TAB caption``
(CC12M), or two files joined by line number (SBU). The lists have no quoting rules: a quote is an
ordinary character. They are read as a stream, and nothing is ever fetched.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.base import Option, Plan, Source
from xvlm_core.sources.drafts import Draft, Event, Kept, Lost, Said
from xvlm_core.sources.identity import same_as
from xvlm_core.sources.img2dataset import find_shards, shard_events
from xvlm_core.sources.strict_json import refuse_encoding
from xvlm_core.sources.webdataset import Reading, common_folder

MAX_LINE = 1 << 20
"""Bytes above which a line is refused."""

_BOM = b"\xef\xbb\xbf"
_URL = re.compile(r"https?://\S+", re.IGNORECASE)
_COLUMNS = ("caption", "url", "image", "_")
_FIELDS = ("file", "row", "row0", "url_name", "md5_url", "sha1_url")
_SAMPLE = 100


@dataclass(frozen=True)
class _List:
    """A published list.

    Attributes:
        path: the file; of a joined pair the one with the addresses.
        columns: what the columns are: "caption", "url", "image" or "_".
        header: the first line names the columns.
        captions: of a joined pair, the file with the captions.
    """

    path: Path
    columns: tuple[str, ...]
    header: bool = False
    captions: Path | None = None

    @property
    def name(self) -> str:
        """File name without extension, for record ids."""
        return (self.captions or self.path).stem

    @property
    def split(self) -> str:
        """As the file name has it (``Validation_GCC-1.1.0-Validation.tsv``)."""
        return "val" if re.search("valid", self.name, re.IGNORECASE) else "train"


def plan(options: dict[str, Any]) -> Plan:
    """Shards of img2dataset, or published lists.

    Raises:
        UsageError: options are missing, or do not go together.
        DataError: a folder or file is missing or damaged.
        MissingToolError: see ``img2dataset.find_shards``.
    """
    roots: tuple[Path, ...] = options["root"]
    if not options["annotations"]:
        if not roots:
            raise UsageError(
                "there is nothing to read",
                try_="xvlm prepare-data web-pairs FOLDER, or --annotations cc12m.tsv --images ...",
            )
        shards = find_shards(roots, parquet=options["parquet"])
        if shards:
            root = common_folder([shard.path for shard in shards])
            reading = Reading(split=options["split"] or "train")
            events = (e for shard in shards for e in shard_events(shard, root, reading))
            return Plan(events, root, tuple(file for shard in shards for file in shard.files))
    return _plan_lists(options, options["annotations"] or _published(roots))


def _published(roots: tuple[Path, ...]) -> tuple[Path, ...]:
    found = []
    for root in roots:
        files = [root] if root.is_file() else sorted(root.iterdir())
        found += [f for f in files if f.suffix == ".tsv" or _is_half(f)]
    if not found:
        raise DataError(
            f"there is no .tar of img2dataset and no .tsv in {', '.join(map(str, roots))}",
            try_="--annotations FILE --images FOLDER --name-template '{row:08d}.jpg'",
        )
    return tuple(found)


def _plan_lists(options: dict[str, Any], paths: tuple[Path, ...]) -> Plan:
    images: Path | None = options["images"]
    if images is None:
        raise UsageError("--images is missing: the folder of the pictures", try_="--images FOLDER")
    if not images.is_dir():
        raise DataError(f"there is no folder {images}", try_="--images FOLDER")
    lists = [*_joined(paths), *(_list(p, options["columns"]) for p in paths if not _is_half(p))]
    template: str | None = options["name_template"]
    for found in lists:
        _check_template(template, found)
    events = (
        event
        for found in lists
        for event in _list_events(found, template, options["split"] or found.split)
    )
    return Plan(events, images, paths)


def _check_template(template: str | None, found: _List) -> None:
    """Raises ``UsageError`` if the picture of a row cannot be named."""
    if template is None:
        if "image" in found.columns:
            return
        raise UsageError(
            f"where is the picture of a row of {found.path.name}? --name-template is missing",
            try_="--name-template '{row:08d}.jpg', with any of " + _listed(),
        )
    try:
        fields = [
            field for _, field, _, _ in string.Formatter().parse(template) if field is not None
        ]
        unknown = [field for field in fields if field not in _FIELDS]
        if unknown or not fields:
            raise UsageError(
                f"--name-template {template!r} has no known field"
                if not fields
                else f"--name-template has no field {{{unknown[0]}}}",
                try_="one of " + _listed(),
            )
        _picture_name(template, "list", 1, "https://a/b.jpg")
    except ValueError as error:
        raise UsageError(
            f"--name-template {template!r} is malformed: {error}", try_="'{row:08d}.jpg'"
        ) from error
    if any("url" in field for field in fields) and "url" not in found.columns:
        raise UsageError(
            f"--name-template needs the address, and {found.path.name} has none", try_="{row}"
        )


def _listed() -> str:
    return ", ".join(f"{{{field}}}" for field in _FIELDS)


def _picture_name(template: str, file: str, row: int, url: str) -> str:
    data = url.encode("utf-8")
    try:
        url_name = urlsplit(url).path.rsplit("/", 1)[-1]
    except ValueError:  # a malformed host
        url_name = ""
    return template.format(
        file=file,
        row=row,
        row0=row - 1,
        url_name=url_name,
        md5_url=hashlib.md5(data, usedforsecurity=False).hexdigest(),
        sha1_url=hashlib.sha1(data, usedforsecurity=False).hexdigest(),
    )


def _is_half(path: Path) -> bool:
    """Whether it is one of two files that are joined by line number (SBU)."""
    return path.suffix == ".txt" and bool(re.search("url|caption", _own_part(path)))


def _joined(paths: tuple[Path, ...]) -> Iterator[_List]:
    halves = [path for path in paths if _is_half(path)]
    captions = [path for path in halves if "caption" in _own_part(path)]
    urls = [path for path in halves if path not in captions]
    if len(captions) != len(urls):
        raise UsageError(
            f"the files {', '.join(path.name for path in halves)} are no pairs of captions and "
            "addresses",
            try_="--annotations ..._urls.txt --annotations ..._captions.txt",
        )
    for url_file, caption_file in zip(sorted(urls), sorted(captions), strict=True):
        counts = [sum(1 for _ in _lines(path)) for path in (url_file, caption_file)]
        if counts[0] != counts[1]:
            raise DataError(
                f"{url_file.name} has {counts[0]} lines and {caption_file.name} {counts[1]}: "
                "they cannot be joined",
                where=str(url_file.parent),
            )
        yield _List(url_file, ("url", "caption"), captions=caption_file)


def _own_part(path: Path) -> str:
    """What tells the two apart: ``SBU_captioned_photo_dataset_urls`` has the word caption too."""
    return re.split(r"[_\-.]", path.stem.lower())[-1]


def _list(path: Path, columns: str | None) -> _List:
    """Which column is what: as said, or as the first lines show."""
    sample = []
    for _, raw in islice(_lines(path), _SAMPLE):
        sample.append((raw or b"").decode("utf-8", "replace").split("\t"))
    if not sample:
        raise DataError(f"{path} is an empty file")
    header = [field.strip().lower() for field in sample[0]]
    named = "caption" in header and set(header) & {"url", "image"}
    if columns is not None:
        names = tuple(name.strip() for name in columns.split(","))
        unknown = [name for name in names if name not in _COLUMNS]
        ok = names.count("caption") == 1 and {"url", "image"} & set(names)
        if unknown or not ok or max(map(names.count, {"url", "image"})) > 1:
            raise UsageError(
                f"--columns {columns} must have caption, and url or image, once each"
                + (f"; {unknown[0]!r} is none of {', '.join(_COLUMNS)}" if unknown else ""),
                try_="--columns caption,url",
            )
        return _List(path, names, header=bool(named))
    if named:
        return _List(path, tuple(n if n in _COLUMNS else "_" for n in header), header=True)
    pairs = [row for row in sample if len(row) == 2]
    first, second = (sum(bool(_URL.fullmatch(row[i].strip())) for row in pairs) for i in (0, 1))
    if first == second:
        raise DataError(
            f"{path} is not caption TAB url, nor url TAB caption",
            where=f"it starts with {' | '.join(sample[0])[:80]!r}",
            try_="--columns caption,url (or image for a file name, _ for anything else)",
        )
    return _List(path, ("url", "caption") if first > second else ("caption", "url"))


def _list_events(found: _List, template: str | None, split: str) -> Iterator[Event]:
    for row, number, fields in _rows(found):
        where = f"{(found.captions or found.path).name}:{number}"
        if isinstance(fields, str):
            yield Lost("line", where, fields)
            continue
        if len(fields) != len(found.columns):
            yield Lost("line", where, "wrong number of columns", "\t".join(fields))
            continue
        values = dict(zip(found.columns, fields, strict=True))
        caption, url = values["caption"], values.get("url", "").strip()
        if not caption.strip():
            yield Lost("line", where, "empty text", url)
        elif "url" in values and not _URL.fullmatch(url):
            yield Lost("line", where, "not a URL", url)
        else:
            picture = _picture_name(template, found.name, row, url) if template else values["image"]
            yield Kept("line")
            yield Draft(
                f"{found.name}:{row}",
                (picture,),
                (Said("caption", caption, where),),
                split=split,
                same_as=same_as(url=url),
            )


def _rows(found: _List) -> Iterator[tuple[int, int, list[str] | str]]:
    """(row from 1, line number, fields or why there are none); empty lines are passed over."""
    first = 2 if found.header else 1
    if found.captions is None:
        for number, raw in _lines(found.path):
            if number >= first and (raw is None or raw.strip()):
                text = _text(raw)
                fields = text if isinstance(text, Reason) else text.split("\t")
                yield number - first + 1, number, fields
        return
    for one, other in zip_longest(_lines(found.path), _lines(found.captions)):
        assert one is not None, "lines were counted"
        assert other is not None, "lines were counted"
        texts = [_text(one[1]), _text(other[1])]
        reason = next((text for text in texts if isinstance(text, Reason)), None)
        if reason is not None or any(text.strip() for text in texts):
            yield one[0], one[0], reason or texts


class Reason(str):
    """Why a line has no text."""

    __slots__ = ()


def _text(raw: bytes | None) -> str:
    if raw is None:
        return Reason("too large")
    try:
        return raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        return Reason("not UTF-8")


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines; None for one that is too long.

    Raises:
        DataError: the file cannot be read, or is UTF-16.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            refuse_encoding(path, start)
            file.seek(len(_BOM) if start.startswith(_BOM) else 0)
            number = 0
            while line := file.readline(MAX_LINE):
                number += 1
                whole = line.endswith(b"\n") or len(line) < MAX_LINE
                while not line.endswith(b"\n") and len(line) == MAX_LINE:
                    line = file.readline(MAX_LINE)
                yield number, line if whole else None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


SOURCE = Source(
    "web-pairs",
    "pictures and captions from the web: img2dataset shards, or CC3M, CC12M and SBU lists",
    (
        Option(
            "root",
            Path,
            "folder that img2dataset wrote (00000.tar, 00000.parquet, ...), or of published lists",
            multiple=True,
        ),
        Option(
            "annotations",
            Path,
            "published list: .tsv, or SBU's ..._urls.txt and ..._captions.txt",
            multiple=True,
        ),
        Option("images", Path, "folder of the pictures of published lists"),
        Option(
            "name_template",
            str,
            "file name of the picture of a row, e.g. '{row:08d}.jpg': {row} counts from 1, {row0} "
            "from 0; {file}, {url_name}, {md5_url}, {sha1_url}",
        ),
        Option(
            "columns",
            str,
            "columns of a list, e.g. caption,url (default: as its lines show); image is the name "
            "of the picture file, _ anything else",
        ),
        Option("parquet", bool, "read the .parquet files for the rows that failed", True),
        Option("split", str, "split of the records (default: from the name of a list, or train)"),
    ),
    plan,
)
