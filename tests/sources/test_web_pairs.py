from __future__ import annotations

import hashlib
import importlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sources.conftest import Prepare
from xvlm_core.errors import DataError, MissingToolError, UsageError
from xvlm_core.sources import web_pairs

SHARED = Path(__file__).parents[3] / "shared" / "data"
PHOTO = "http://static.flickr.com/2723/4385058960_b0f291553e.jpg"


def jpg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 9), (200, 30, 30)).save(file, "JPEG")
    return file.getvalue()


def sample(key: str, text: str, url: str = "https://a.org/b.jpg?x=1") -> dict[str, bytes]:
    about = {"url": url, "caption": text, "key": key, "status": "success", "width": 16}
    return {
        f"{key}.jpg": jpg(),
        f"{key}.txt": text.encode(),
        f"{key}.json": json.dumps(about).encode(),
    }


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_parquet(path: Path, rows: dict[str, list[Any]]) -> None:
    arrow = pytest.importorskip("pyarrow")
    importlib.import_module("pyarrow.parquet").write_table(arrow.table(rows), path)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """What img2dataset wrote: five addresses, of which three came."""
    folder = tmp_path / "web"
    samples = [sample("000000000", "a <PERSON> runs", PHOTO), sample("000000002", "a dog")]
    write_tar(folder / "00000.tar", {**samples[0], **samples[1]})
    write_parquet(
        folder / "00000.parquet",
        {
            "key": [f"00000000{i}" for i in range(5)],
            "status": ["success", "failed_to_download", "success", "failed_to_resize", None],
            "error_message": [None, "404", None, "decoding", None],
        },
    )
    (folder / "00000_stats.json").write_text('{"count": 5, "successes": 2}')
    return folder


def test_a_shard_of_img2dataset(shard: Path, prepare_store: Prepare) -> None:
    made = prepare_store("web-pairs", {"root": [shard]})
    assert [(r.id, r.captions) for r in made.records] == [
        ("00000/000000000", ("a <PERSON> runs",)),
        ("00000/000000002", ("a dog",)),
    ]
    assert made.records[0].same_as == (
        "flickr:4385058960",
        "url:static.flickr.com/2723/4385058960_b0f291553e.jpg",
    )
    assert made.records[1].same_as == ("url:a.org/b.jpg",)
    assert made.records[0].image.startswith("00000.tar@512+")
    assert made.count("picture")["read"] == 5
    assert made.lost("picture") == {
        "00000/000000001": "failed_to_download",
        "00000/000000003": "failed_to_resize",
        "00000/000000004": "failed",
    }
    assert "line" not in made.manifest.counts


def test_the_files_form_says_the_same(shard: Path, prepare_store: Prepare) -> None:
    tar = prepare_store("web-pairs", {"root": [shard]})
    with tarfile.open(shard / "00000.tar") as file:
        file.extractall(shard / "00000", filter="data")
    (shard / "00000.tar").unlink()
    files = prepare_store("web-pairs", {"root": [shard]})
    assert [(r.id, r.captions, r.same_as) for r in files.records] == [
        (r.id, r.captions, r.same_as) for r in tar.records
    ]
    assert files.records[0].image == "00000/000000000.jpg"
    assert files.manifest.counts == tar.manifest.counts


def test_a_row_that_came_and_is_not_there_is_missing(shard: Path, prepare_store: Prepare) -> None:
    write_tar(shard / "00000.tar", sample("000000000", "a man"))
    made = prepare_store("web-pairs", {"root": [shard]})
    assert made.lost("picture")["00000/000000002"] == "missing"
    assert made.lost("line") == {"00000_stats.json": "count mismatch"}
    (line,) = [x for x in made.ledger if x["item"] == "line"]
    assert line["seen"] == "2 successes, 1 pictures"


def test_rows_after_the_cut_of_a_tar_are_missing_and_the_counts_are_no_news(
    shard: Path, prepare_store: Prepare
) -> None:
    data = (shard / "00000.tar").read_bytes()
    (shard / "00000.tar").write_bytes(data[: data.index(b"000000002.jpg") + 600])
    made = prepare_store("web-pairs", {"root": [shard]})
    assert made.lost("line") == {"00000.tar:000000002.jpg": "unexpected end"}
    assert made.lost("picture")["00000/000000002"] == "missing"


def test_a_shard_of_which_only_the_list_is_left(shard: Path, prepare_store: Prepare) -> None:
    write_parquet(shard / "00001.parquet", {"key": ["000010000"], "status": ["success"]})
    made = prepare_store("web-pairs", {"root": [shard]})
    assert made.lost("picture")["00001/000010000"] == "missing"


def test_without_parquet_only_what_is_there_is_counted(
    shard: Path, prepare_store: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(MissingToolError, match="pyarrow") as error:
        prepare_store("web-pairs", {"root": [shard]})
    assert error.value.exit_code == 7
    assert error.value.try_ == "pip install pyarrow"
    made = prepare_store("web-pairs", {"root": [shard], "parquet": False})
    assert made.count("picture") == {"read": 2, "kept": 2, "dropped": {}, "repaired": {}}


def test_a_cut_parquet_is_an_error_before_anything_is_read(
    shard: Path, prepare_store: Prepare
) -> None:
    path = shard / "00000.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    values = {"root": (shard,), "annotations": (), "parquet": True, "split": None}
    with pytest.raises(DataError, match="not a whole parquet file"):
        web_pairs.plan(values)
    for damaged in (whole[:100], b"", whole[:50] + b"x" * 200 + whole[-4:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"00000\.parquet is not a whole parquet file") as error:
            prepare_store("web-pairs", {"root": [shard]})
        assert error.value.try_ == "--no-parquet"


def test_a_parquet_without_the_columns_names_those_it_has(
    shard: Path, prepare_store: Prepare
) -> None:
    write_parquet(shard / "00000.parquet", {"id": ["0"], "status": ["success"]})
    with pytest.raises(DataError, match=r"00000\.parquet has no column key") as error:
        prepare_store("web-pairs", {"root": [shard]})
    assert error.value.where == "its columns: id, status"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for row in (1, 2, 3):
        (folder / f"{row:04d}.jpg").write_bytes(jpg())
    return folder


def make_list(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def options(images: Path, *lists: Path, **more: Any) -> dict[str, Any]:
    return {"annotations": list(lists), "images": images, "name_template": "{row:04d}.jpg", **more}


def test_the_order_of_the_columns_is_seen(
    tmp_path: Path, images: Path, prepare_store: Prepare
) -> None:
    rows = [("a man", "https://a.org/1.jpg"), ('a "dog', PHOTO)]
    one = make_list(tmp_path, "a.tsv", "".join(f"{text}\t{url}\n" for text, url in rows))
    two = make_list(tmp_path, "b.tsv", "".join(f"{url}\t{text}\r\n" for text, url in rows))
    named = make_list(tmp_path, "c.tsv", "\ufeffURL\tcaption\n" + two.read_text())
    for path in (one, two, named):
        made = prepare_store("web-pairs", options(images, path))
        assert [(r.id, r.captions, r.image) for r in made.records] == [
            (f"{path.stem}:1", ("a man",), "0001.jpg"),
            (f"{path.stem}:2", ('a "dog',), "0002.jpg"),
        ]
        assert made.records[1].same_as[0] == "flickr:4385058960"
        assert made.count("line")["kept"] == 2


def test_lines_that_cannot_be_used_are_named(
    tmp_path: Path, images: Path, prepare_store: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_pairs, "MAX_LINE", 80)
    path = make_list(
        tmp_path,
        "a.tsv",
        b"a man\thttps://a.org/1\n"
        b"no url\n"
        b"\thttps://a.org/3\n"
        b"\n"
        b"three\tcolumns\thttps://a.org\n"
        b"a man\tnot a url\n"
        b"caf\xe9\thttps://a.org/7\n" + b"x" * 200 + b"\thttps://a.org/8\n"
        b"gone\thttps://a.org/9",
    )
    made = prepare_store("web-pairs", options(images, path))
    assert [r.id for r in made.records] == ["a:1"]
    assert made.lost("line") == {
        "a.tsv:2": "wrong number of columns",
        "a.tsv:3": "empty text",
        "a.tsv:5": "wrong number of columns",
        "a.tsv:6": "not a URL",
        "a.tsv:7": "not UTF-8",
        "a.tsv:8": "too large",
    }
    assert made.lost("picture") == {"a:9": "missing"}
    assert made.count("line")["read"] == 8


def test_columns_can_be_said(tmp_path: Path, images: Path, prepare_store: Prepare) -> None:
    path = make_list(tmp_path, "a.tsv", "7\t0003.jpg\ta man\n")
    made = prepare_store(
        "web-pairs", {"annotations": [path], "images": images, "columns": "_,image,caption"}
    )
    assert [(r.image, r.captions, r.same_as) for r in made.records] == [
        ("0003.jpg", ("a man",), ())
    ]


def test_every_way_to_name_a_picture(tmp_path: Path, prepare_store: Prepare) -> None:
    url = "https://a.org/x/b.jpg?y=1"
    path = make_list(tmp_path, "lst.tsv", f"a man\t{url}\n")
    md5 = hashlib.md5(url.encode()).hexdigest()
    sha1 = hashlib.sha1(url.encode()).hexdigest()
    for template, name in (
        ("{row}.jpg", "1.jpg"),
        ("{file}/{row0:03d}.jpg", "lst/000.jpg"),
        ("{url_name}", "b.jpg"),
        ("{md5_url}", md5),
        ("{sha1_url}.jpg", f"{sha1}.jpg"),
    ):
        (tmp_path / "p" / "lst").mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(jpg())
        made = prepare_store("web-pairs", options(tmp_path / "p", path, name_template=template))
        assert made.records[0].image == name


def test_an_address_cannot_lead_out_of_the_folder(
    tmp_path: Path, images: Path, prepare_store: Prepare
) -> None:
    path = make_list(tmp_path, "a.tsv", "a\thttps://a.org/..\nb\thttps://a.org/0001.jpg\n")
    made = prepare_store("web-pairs", options(images, path, name_template="{url_name}"))
    assert made.lost("picture") == {"a:1": "outside the image root"}


def test_the_two_files_of_sbu_are_joined_by_line(
    tmp_path: Path, images: Path, prepare_store: Prepare
) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    urls = make_list(
        folder, "SBU_captioned_photo_dataset_urls.txt", f"{PHOTO}\nhttps://a.org/2\nno\n"
    )
    texts = make_list(
        folder, "SBU_captioned_photo_dataset_captions.txt", b"A kitchen.\n\xe9\nA man.\n"
    )
    given = options(images, texts, urls)
    found = {"root": [folder], "images": images, "name_template": "{row:04d}.jpg"}
    for chosen in (given, found):
        made = prepare_store("web-pairs", chosen)
        (record,) = made.records
        assert record.captions == ("A kitchen.",)
        assert record.same_as[0] == "flickr:4385058960"
        assert made.lost("line") == {f"{texts.name}:2": "not UTF-8", f"{texts.name}:3": "not a URL"}
    make_list(folder, urls.name, "https://a.org/1\nhttps://a.org/2\n")
    with pytest.raises(DataError, match=r"_urls.txt has 2 lines and .*_captions.txt 3"):
        prepare_store("web-pairs", given)
    with pytest.raises(UsageError, match="no pairs of captions"):
        prepare_store("web-pairs", options(images, urls))


def test_the_validation_list_is_split_val(
    tmp_path: Path, images: Path, prepare_store: Prepare
) -> None:
    path = make_list(tmp_path, "Validation_GCC-1.1.0-Validation.tsv", "a\thttps://a.org/1\n")
    assert prepare_store("web-pairs", options(images, path)).records[0].split == "val"
    assert prepare_store("web-pairs", options(images, path, split="x")).records[0].split == "x"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"images": None}, "--images is missing"),
        ({"name_template": None}, r"--name-template is missing"),
        ({"name_template": "{key}.jpg"}, r"no field \{key\}"),
        ({"name_template": "{row.real}.jpg"}, r"no field \{row.real\}"),
        ({"name_template": "a.jpg"}, "has no known field"),
        ({"name_template": "{row"}, "is malformed"),
        ({"name_template": "{row:x<y}"}, "is malformed"),
        ({"columns": "caption"}, "--columns caption must have"),
        ({"columns": "caption,link"}, "'link' is none of"),
        ({"columns": "caption,url,url"}, "must have"),
        ({"columns": "caption,image", "name_template": "{md5_url}"}, "needs the address"),
        ({"annotations": (), "root": ()}, "there is nothing to read"),
    ],
)
def test_options_that_do_not_fit_are_named(
    tmp_path: Path, images: Path, prepare_store: Prepare, change: dict[str, Any], what: str
) -> None:
    path = make_list(tmp_path, "a.tsv", "a man\thttps://a.org/1\n")
    with pytest.raises(UsageError, match=what) as error:
        prepare_store("web-pairs", {**options(images, path), **change})
    assert error.value.try_


def test_input_that_is_not_there_or_no_list_is_an_error(
    tmp_path: Path, images: Path, prepare_store: Prepare
) -> None:
    path = make_list(tmp_path, "a.tsv", "a man\tno address\n")
    with pytest.raises(DataError, match=r"a\.tsv is not caption TAB url") as error:
        prepare_store("web-pairs", options(images, path))
    assert str(error.value.try_).startswith("--columns caption,url")
    make_list(tmp_path, "a.tsv", "")
    with pytest.raises(DataError, match=r"a\.tsv is an empty file"):
        prepare_store("web-pairs", options(images, path))
    make_list(tmp_path, "a.tsv", "a\thttps://a.org/1\n".encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        prepare_store("web-pairs", options(images, path))
    with pytest.raises(DataError, match=r"cannot read .*none\.tsv"):
        prepare_store("web-pairs", options(images, tmp_path / "none.tsv"))
    with pytest.raises(DataError, match="there is no folder") as error:
        prepare_store("web-pairs", options(tmp_path / "none", path))
    assert error.value.try_ == "--images FOLDER"
    with pytest.raises(DataError, match="there is no folder"):
        prepare_store("web-pairs", {"root": [tmp_path / "none"]})
    with pytest.raises(DataError, match=r"no \.tar of img2dataset and no \.tsv"):
        prepare_store("web-pairs", {"root": [images]})


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared samples are absent")
@pytest.mark.parametrize("name", ["cc3m", "cc12m", "sbu"])
def test_shared_shards(prepare_store: Prepare, name: str) -> None:
    pytest.importorskip("pyarrow")
    expected = json.loads((SHARED / "expected_counts.json").read_text())["files"]
    made = prepare_store("web-pairs", {"root": [SHARED / name]})
    rows = expected[f"{name}/00000.parquet"]
    status = dict(rows["by_status"])
    assert made.count("picture")["read"] == rows["rows"]
    assert made.count("picture")["kept"] == status.pop("success")
    assert made.dropped("picture") == status
    assert made.count("caption")["kept"] == expected[f"{name}/00000.tar"]["captions"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared samples are absent")
def test_shared_lists(prepare_store: Prepare, tmp_path: Path) -> None:
    expected = json.loads((SHARED / "expected_counts.json").read_text())["files"]
    sbu = [f"sbu/SBU_captioned_photo_dataset_{half}.txt" for half in ("urls", "captions")]
    for row in range(20):
        (tmp_path / f"{row}.jpg").write_bytes(jpg())
    for names in (
        ["cc3m/Train_GCC-training.tsv"],
        ["cc3m/Validation_GCC-1.1.0-Validation.tsv"],
        ["cc12m/cc12m.tsv"],
        sbu,
        ["hostile/odd_rows.tsv"],
    ):
        lists = [SHARED / name for name in names]
        made = prepare_store("web-pairs", options(tmp_path, *lists, name_template="{row}.jpg"))
        counts = expected[names[0]]
        assert made.count("line")["read"] == counts["rows"]
        assert made.count("line")["kept"] == counts.get("kept", counts["rows"])
        assert len(made.records) == counts.get("kept", counts["rows"])
    cut = (SHARED / "hostile" / "truncated.parquet").read_bytes()
    (tmp_path / "00000.parquet").write_bytes(cut)
    with pytest.raises(DataError, match="not a whole parquet file"):
        prepare_store("web-pairs", {"root": [tmp_path]})
