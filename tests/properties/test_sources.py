"""Sources: whatever a file holds, nothing is lost silently and nothing but our errors comes out."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.properties.cases import cases
from xvlm_core.data.images import PictureError, resolve_inside
from xvlm_core.data.store import Store
from xvlm_core.data.text import sanitize
from xvlm_core.errors import DataError
from xvlm_core.sources import strict_json
from xvlm_core.sources.identity import flickr_photo, same_as
from xvlm_core.sources.prepare import prepare
from xvlm_core.sources.strict_json import JsonProblem, iter_array, iter_members, parse

# ------------------------------------------------------------------------------ JSON in pieces

tricky = st.sampled_from(
    ['}, {"id": 1', '"', "\\", "\\\\", "]", '","', '"bbox": [1, 2]', "é🦓", "\u2028", "\ud83d"]
)
texts = st.one_of(st.text(max_size=6), tricky)
keys = st.one_of(st.sampled_from(["id", "bbox", "a", 'x"bbox', ""]), texts)
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([1.5, -0.0, 1e300, 2e-9, 10**30]))
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
boxes = st.lists(numbers, max_size=4)
objects = st.one_of(
    st.builds(lambda i, rest: {"id": i, **rest}, numbers, st.dictionaries(keys, json_values)),
    st.builds(lambda i, box: {"id": i, "bbox": box, "more": [{"bbox": box}]}, numbers, boxes),
)
long_numbers = st.sampled_from([1234567, -1.25, 1e300, 2.5e-9, float("inf"), True, None, "12"])
members = st.one_of(
    st.lists(st.one_of(objects, objects, json_values), max_size=8),
    st.lists(long_numbers, min_size=1, max_size=4),
)
documents = st.dictionaries(
    st.one_of(st.sampled_from(["images", "annotations", "info"]), keys),
    st.one_of(members, members, json_values),
    max_size=4,
)
pieces = st.one_of(st.integers(1, 40), st.just(1 << 20))


@st.composite
def written(draw: st.DrawFn, value: object) -> bytes:
    """A value as JSON, one way or another."""
    ascii_only = draw(st.booleans())
    text = json.dumps(
        value,
        indent=draw(st.sampled_from([None, 0, 2, "\t"])),
        ensure_ascii=ascii_only,
        separators=draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: ")])),
    )
    try:
        data = text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which can be escaped alone
        data = json.dumps(value).encode()
    return (
        draw(st.sampled_from([b"", b"\xef\xbb\xbf", b" \n"]))
        + data
        + draw(st.sampled_from([b"", b"\n", b" \r\n"]))
    )


def same(found: object, expected: object) -> bool:
    """Equal, with types, order and NaN."""
    return json.dumps(found) == json.dumps(expected)


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "a.json"


def read(found: Iterator[Any], piece: int) -> tuple[list[Any], bool]:
    """What comes out at this size of the pieces of the file, and whether it ends with an error."""
    out = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_json, "_PIECE", piece)
        try:
            for one in found:
                out.append(one)
        except DataError:
            return out, True
    return out, False


def pruned(value: Any, without: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {k: pruned(v, without) for k, v in value.items() if k not in without}
    return [pruned(v, without) for v in value] if isinstance(value, list) else value


withouts = st.sampled_from([frozenset[str](), frozenset({"bbox"}), frozenset({"bbox", "a"})])


@cases(200)
@given(st.data(), members, pieces, withouts)
def test_the_members_of_an_array_are_those_of_the_whole_document(
    path: Path, data: st.DataObject, value: list[Any], piece: int, without: frozenset[str]
) -> None:
    path.write_bytes(data.draw(written(value)))
    found, failed = read(iter_array(path, without=without), piece)
    assert not failed
    assert same(found, pruned(json.loads(path.read_bytes()), without))
    assert same(found, strict_json.read_document(path, without=without))


@cases(200)
@given(st.data(), documents, pieces, withouts)
def test_the_members_of_arrays_of_an_object_are_those_of_the_whole_document(
    path: Path, data: st.DataObject, value: dict[str, Any], piece: int, without: frozenset[str]
) -> None:
    path.write_bytes(data.draw(written(value)))
    whole = json.loads(path.read_bytes().decode("utf-8-sig"))
    wanted = ("images", "annotations")
    found, failed = read(iter_members(path, wanted, without=without), piece)
    no_list = [key for key in whole if key in wanted and not isinstance(whole[key], list)]
    expected = []
    for key in whole:
        if key in no_list:
            break
        expected += [(key, member) for member in whole[key]] if key in wanted else []
    assert failed == bool(no_list)
    assert same(found, pruned([list(pair) for pair in expected], without))


@cases(200)
@given(st.data(), members, pieces)
def test_of_a_document_that_was_cut_off_no_wrong_member_comes(
    path: Path, data: st.DataObject, value: list[Any], piece: int
) -> None:
    content = data.draw(written(value))
    cut = data.draw(st.integers(0, len(content.rstrip()) - 1))
    path.write_bytes(content[:cut])
    found, failed = read(iter_array(path), piece)
    assert failed
    assert same(found, json.loads(content)[: len(found)])
    path.write_bytes(b'{"images":' + content.removeprefix(b"\xef\xbb\xbf")[:cut])
    found, failed = read(iter_members(path, ("images",)), piece)
    assert failed
    assert same([member for _, member in found], json.loads(content)[: len(found)])


@cases(150)
@given(st.data(), st.one_of(documents, members), pieces, st.binary(max_size=3))
def test_of_a_document_with_other_bytes_in_it_come_members_or_an_error_of_ours(
    path: Path, data: st.DataObject, value: object, piece: int, other: bytes
) -> None:
    content = data.draw(written(value))
    at = data.draw(st.one_of(st.integers(0, len(content)), st.just(len(content))))
    left_out = data.draw(st.integers(0, 2))
    path.write_bytes(content[:at] + other + content[at + left_out :])
    for found in (iter_members(path, ("images", "annotations")), iter_array(path)):
        members_found, failed = read(found, piece)
        try:
            text = path.read_bytes().decode("utf-8-sig")
            parse(text)
        except (UnicodeDecodeError, JsonProblem):
            assert failed, (members_found, path.read_bytes())


@cases(80)
@given(st.data(), json_values)
def test_a_text_is_parsed_as_json_does_or_has_a_reason(data: st.DataObject, value: Any) -> None:
    text = data.draw(written(value)).removeprefix(b"\xef\xbb\xbf").decode()
    assert same(parse(text), json.loads(text))
    for wrong in (text.strip()[:-1] + "]}", '{"a": 1, "b": {"c": 2, "c": ' + text + "}}"):
        with pytest.raises(JsonProblem):
            parse(wrong)


@cases(40)
@given(st.one_of(st.integers(95, 105), st.integers(1, 5000)), st.booleans())
def test_what_is_nested_too_deep_is_refused_wherever_it_is_parsed(depth: int, lists: bool) -> None:
    text = "[" * depth + "]" * depth if lists else '{"a":' * depth + "1" + "}" * depth
    if depth <= 100:
        assert same(parse(text), json.loads(text))
    else:
        with pytest.raises(JsonProblem, match="nested too deep"):
            parse(text)


# ------------------------------------------------------------------------------ names

anything = st.one_of(json_values, st.binary(max_size=4), st.just("1" * 6000), st.just(10**6000))
hosts = st.sampled_from(
    ["flickr.com", "farm1.staticflickr.com", "live.staticflickr.com:80", "a@flickr.com", "x.org"]
)
digits = st.one_of(
    st.integers(0, 10**12).map(str), st.sampled_from(["0" * 9, "1" * 6000, "١٢٣٤٥", "12²45"])
)
urls = st.builds(
    lambda scheme, host, folder, number, rest: f"{scheme}{host}/{folder}/{number}{rest}",
    st.sampled_from(["http://", "https://", "HTTP://", "//", "", "ftp://[", "http://[::1"]),
    hosts,
    texts,
    digits,
    st.sampled_from(["_a1b2.jpg", "_a1b2_z.jpg?x=1#y", "", "_", ".jpg", "_é.jpg"]),
)


photo_urls = digits.map(lambda number: f"https://live.staticflickr.com/5/{number}_a1b2.jpg")


@cases(150)
@given(st.one_of(photo_urls, urls, texts), anything, anything, anything)
def test_any_value_has_names_or_none(url: str, coco: object, flickr: object, vg: object) -> None:
    photo = flickr_photo(url)
    assert photo is None or (photo.isascii() and photo.isdigit())
    assert flickr_photo(coco) is None or isinstance(coco, str)
    names = same_as(coco=coco, flickr=flickr, vg=vg, url=url)
    assert len(set(names)) == len(names)
    for name in names:
        prefix, _, id = name.partition(":")
        assert prefix in ("coco", "flickr", "vg", "url")
        name.encode()  # it can be stored
        if prefix != "url":
            assert str(int(id)) == id
        else:
            assert id
            assert "?" not in id


@cases(60)
@given(st.integers(1000, 10**11), hosts, st.sampled_from(["", "_z", "_b"]), st.booleans())
def test_the_photo_of_an_address_of_flickr_is_found_and_of_no_other(
    number: int, host: str, size: str, secure: bool
) -> None:
    url = f"http{'s' * secure}://{host}/5/{number}_0a1b2c{size}.jpg"
    expected = str(number) if "flickr" in host else None
    assert flickr_photo(url) == expected
    assert same_as(url=url) == (
        *([f"flickr:{number}"] if expected else []),
        f"url:{host}/5/{number}_0a1b2c{size}.jpg",
    )


# ------------------------------------------------------------------------------ the image root

parts = st.sampled_from(
    ["a", "b", "c", "link", "up", "out", "..", ".", "", "a.jpg", "secret", "é", "x:", "C:", "\\"]
)
separators = st.sampled_from(["/", "/", "/", "//", "\\", "/./"])


@st.composite
def relative_paths(draw: st.DrawFn) -> str:
    path = draw(parts)
    for part in draw(st.lists(parts, max_size=4)):
        path += draw(separators) + part
    return draw(st.sampled_from(["", "", "", "/", "\\", "./", "~/", "file:", "http://"])) + path


links = st.lists(
    st.tuples(
        st.sampled_from(["link", "a/link", "b/up", "out", "a/b/c", "c"]),
        st.sampled_from(["..", ".", "../outside", "a", "b", "../..", "link", "a/b", "/", "secret"])
        | st.just("OUTSIDE"),
    ),
    max_size=5,
)


@cases(200)
@given(links, st.lists(st.one_of(relative_paths(), st.text(max_size=6)), min_size=1, max_size=5))
def test_no_path_leads_out_of_the_image_root(
    links: list[tuple[str, str]], relatives: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(os.path.realpath(folder))
        root, outside = base / "root", base / "outside"
        for made in (root / "a" / "b", root / "b", outside):
            made.mkdir(parents=True)
        for file in (root / "a.jpg", root / "a" / "a.jpg", outside / "secret", base / "secret"):
            file.write_text("x")
        for name, target in links:
            if not os.path.lexists(root / name) and (root / name).parent.is_dir():
                os.symlink(outside if target == "OUTSIDE" else target, root / name)
        for relative in relatives:
            try:
                found = resolve_inside(root, relative)
            except PictureError:
                continue
            real = os.path.realpath(root / relative)
            assert os.path.realpath(found) == real
            assert os.path.commonpath([real, root]) == str(root)
        assert resolve_inside(root, "a/a.jpg") == root / "a" / "a.jpg"


# ------------------------------------------------------------------------------ lines


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``ok.jpg`` (40 x 30), ``turned.jpg`` (stored 20 x 30, shown 30 x 20), ``page.jpg`` (none)."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.new("RGB", (40, 30)).save(folder / "ok.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 30)).save(folder / "turned.jpg", exif=exif)
    (folder / "page.jpg").write_text("<html>")
    return folder


names = st.sampled_from(
    ["ok.jpg", "ok.jpg", "./ok.jpg", "turned.jpg", "page.jpg", "../ok.jpg", "no.jpg", "", "a\x00"]
)
places = st.one_of(st.integers(-3, 45), st.floats(-1, 41), st.sampled_from([1e-5, 29.99998, 40]))
near_boxes = st.lists(places, min_size=4, max_size=4)
phrases = st.one_of(
    st.sampled_from(["a dog", "the dog!", "...", " ", "a\u200bcat", "\ud800"]), texts
)
known_values = st.one_of(names, near_boxes, phrases, json_values, st.lists(phrases, max_size=3))
regions = st.one_of(
    st.fixed_dictionaries(
        {}, optional={"text": phrases, "box": near_boxes, "box_xyxy_px": near_boxes, "kind": texts}
    ),
    json_values,
)
odd_ids = st.sampled_from(["\ud800", "q\udfff", 1, "q"])
questions = st.one_of(
    st.fixed_dictionaries(
        {"question": phrases},
        optional={
            "id": odd_ids | json_values,
            "answers": st.lists(phrases | st.fixed_dictionaries({"answer": phrases}), max_size=2)
            | json_values,
        },
    ),
    json_values,
)
one_text = st.fixed_dictionaries(
    {"image": names, "text": phrases},
    optional={"box": near_boxes, "split": phrases, "kind": texts, "width": st.sampled_from([40])},
)
whole_record = st.fixed_dictionaries(
    {"image": names},
    optional={
        "captions": st.lists(phrases, max_size=3) | json_values,
        "regions": st.lists(regions, max_size=3) | json_values,
        "absent": st.lists(phrases, max_size=2),
        "questions": st.lists(questions, max_size=2),
        "proposals_xyxy_px": st.lists(near_boxes | json_values, max_size=2),
        "width": st.sampled_from([40, 30, 20, 0, True]) | json_values,
        "height": st.sampled_from([30, 20]) | json_values,
        "same_as": st.lists(texts, max_size=2) | json_values,
        "source": phrases,
        "meta": json_values,
    },
)
wild = st.dictionaries(
    st.sampled_from(["image", "images", "text", "box", "id", "captions", "regions", "statement"])
    | texts,
    known_values,
    max_size=4,
)
pair = st.fixed_dictionaries(
    {"images": st.lists(names, min_size=2, max_size=2)},
    optional={"statement": st.fixed_dictionaries({"text": phrases}) | json_values},
)
junk = st.one_of(
    st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"")),
    st.sampled_from([b"", b"\t", b"{", b"null", b"[1]", b'{"a": 1, "a": 2}', b"\xff\xfe", b"NaN"]),
    st.just(b"[" * 3000),
    st.integers(90, 1100).map(
        lambda n: b'{"image": "ok.jpg", "captions": [], "meta": {"a": %s}}' % (b"[" * n + b"]" * n)
    ),
)
# On the picture as stored, so turned; and texts that cannot be written down.
special = st.sampled_from(
    [
        {"image": "turned.jpg", "text": "it", "box": [1, 21, 19, 29], "width": 20, "height": 30},
        {"image": "ok.jpg", "questions": [{"id": "\ud800", "question": "what is it"}]},
        {"image": "ok.jpg", "captions": ["a cat"], "source": "\udfff"},
        {"image": "ok.jpg", "captions": ["a cat"], "meta": {"a": ["\udfff"]}},
    ]
)
lines = st.lists(
    st.one_of(
        st.one_of(one_text, whole_record, wild, pair, special).map(
            lambda v: json.dumps(v).encode()
        ),
        junk,
    ),
    max_size=7,
)


def check(folder: Path, count: int) -> None:
    """Nothing is lost silently, and what is kept is sound."""
    store = Store.open(folder)
    store.verify()
    counts = store.manifest.counts
    with open(folder / "ledger.jsonl", encoding="utf-8") as file:
        ledger = [json.loads(line) for line in file]
    listed = Counter(line["item"] for line in ledger if line["what"] == "dropped")
    for item, count_of in counts.items():
        dropped = sum(count_of["dropped"].values())
        assert count_of["read"] == count_of["kept"] + dropped, item
        assert listed.pop(item, 0) == dropped, item
    assert not listed
    assert counts["line"]["read"] == count
    for record in store:
        found = [region.box_xyxy_px for region in record.regions]
        for x1, y1, x2, y2 in (*found, *record.proposals_xyxy_px):
            assert 0 <= x1 < x2 <= record.width
            assert 0 <= y1 < y2 <= record.height
        assert (record.width, record.height) in ((40, 30), (30, 20))
        said = [*record.captions, *record.absent, *(region.text for region in record.regions)]
        assert all(text.strip() and sanitize(text) == text for text in said)


@cases(300)
@given(lines, st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_lines_are_kept_or_listed_whatever_they_hold(
    pictures: Path, found: list[bytes], end: bytes, allow_empty: bool
) -> None:
    good = {"image": "ok.jpg", "text": "a dog runs", "box": [1, 2, 30, 20]}
    found = [*found, json.dumps(good).encode()]
    with tempfile.TemporaryDirectory() as place:
        path, folder = Path(place) / "mine.jsonl", Path(place) / "store"
        path.write_bytes(end.join(found))
        options = {"annotations": [path], "images": pictures, "allow_empty": allow_empty}
        try:
            prepare("jsonl", folder, {**options, "workers": 1}, command="xvlm prepare-data")
        except DataError as error:
            what = error.what
            assert any(
                words in what
                for words in ("same id", "nothing to keep", "has a key", "UTF-16", "UTF-32")
            ), what
            assert not folder.exists()
            return
        check(folder, sum(bool(line.strip()) for line in found))
