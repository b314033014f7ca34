from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.sources.conftest import Prepare, Prepared
from xvlm_core.data.records import Region
from xvlm_core.errors import DataError, UsageError


@pytest.fixture
def convert(tmp_path: Path, pictures: Path, prepare_store: Prepare) -> Any:
    """Prepare a table (text or bytes) against the folder of pictures."""

    def run(text: str | bytes, name: str = "mine.csv", **options: Any) -> Prepared:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        options = {"annotations": [path], "images": pictures, **options}
        return prepare_store("table", options)

    return run


def test_rows_of_one_picture_become_one_record_wherever_they_stand(convert: Any) -> None:
    done = convert(
        "File Name,caption,xmin,ymin,xmax,ymax,split\n"
        "ok.jpg,a dog,1,2,30,40,val\n"
        "other.png,the blue sea,,,,,\n"
        "./ok.jpg,dogs on a beach,,,,,val\n"
        "ok.jpg,the left dog,5,6,70.5,80,\n"
    )
    first, second = done.records
    assert (first.id, first.split, first.width, first.height) == ("ok.jpg", "val", 160, 90)
    assert first.captions == ("dogs on a beach",)
    assert first.regions == (
        Region("a dog", (1, 2, 30, 40), "phrase"),
        Region("the left dog", (5, 6, 70.5, 80), "phrase"),
    )
    assert (second.captions, second.split) == (("the blue sea",), "train")
    assert done.count("line") == {"read": 4, "kept": 4, "dropped": {}, "repaired": {}}


@pytest.mark.parametrize(
    ("header", "cells", "options"),
    [
        ("image,text,x1,y1,x2,y2", "16,9,80,72", {}),
        ("image,text,left,top,right,bottom", "16,9,80,72", {}),
        ("image,text,x,y,w,h", "16,9,64,63", {}),
        ("image,text,x,y,width,height", "16,9,64,63", {}),
        ("image,text,cx,cy,w,h", "48,40.5,64,63", {}),
        ("image,text,xmin,ymin,width,height", "16,9,64,63", {}),
        ("image,text,box", '"[16, 9, 80, 72]"', {}),
        ("image,text,box", "16 9 80 72", {}),
        ("image,text,bbox_xyxy", '"(16.0, 9.0, 80.0, 72.0)"', {}),
        ("image,text,bbox_xywh", '"[16, 9, 64, 63]"', {}),
        ("image,text,bbox", '"[16, 9, 64, 63]"', {"box_format": "xywh"}),
        ("image,text,a,b,c,d", "16,9,80,72", {"box_columns": "a,b,c,d"}),
        ("image,text,c,d,a,b", "80,72,16,9", {"box_columns": "a, b, c, d"}),
        ("image,text,b4", "0.1;0.1;0.5;0.8", {"box_columns": "b4", "box_unit": "fraction"}),
    ],
)
def test_boxes_are_found_by_the_names_of_their_columns(
    convert: Any, header: str, cells: str, options: dict[str, str]
) -> None:
    done = convert(f"{header}\nok.jpg,a dog,{cells}\n", **options)
    assert done.records[0].regions[0].box_xyxy_px == pytest.approx((16, 9, 80, 72))


def test_a_stated_size_is_checked_and_a_label_is_an_object(convert: Any) -> None:
    done = convert(
        "filename,width,height,class,xmin,ymin,xmax,ymax\n"
        "ok.jpg,160,90,dog,1,2,30,40\n"
        "other.png,320,180,dog,1,2,30,40\n"
        "ok.jpg,wide,90,dog,1,2,30,40\n"
        "ok.jpg,160,91,dog,1,2,30,40\n"
        "ok.jpg,,,cat,1,2,30,40\n"
    )
    box = (1, 2, 30, 40)
    assert done.records[0].regions == (Region("dog", box, "object"), Region("cat", box, "object"))
    assert done.lost("picture") == {"other.png": "size mismatch"}
    assert done.lost("line") == {"mine.csv:4": "malformed size", "mine.csv:5": "size mismatch"}


def test_what_was_taken_for_what_stands_in_the_store(convert: Any, tmp_path: Path) -> None:
    convert(
        "filename,width,height,label,x1,y1,x2,y2,Split,remark\nok.jpg,160,90,dog,1,2,30,40,val,-\n"
    )
    chosen = json.loads((tmp_path / "store-0" / "columns.json").read_text())
    assert chosen == {
        "mine.csv": {
            "image": "filename",
            "text": "label",
            "split": "Split",
            "box": {"columns": ["x1", "y1", "x2", "y2"], "format": "xyxy", "unit": "px"},
            "size": ["width", "height"],
            "not_used": ["remark"],
            "delimiter": ",",
        }
    }


def test_columns_can_be_named(convert: Any) -> None:
    done = convert(
        "a,b,c,d,e\nok.jpg,a dog,r1,test,attribute\nok.jpg,b dog,r2,test,\nok.jpg,,r2,test,x\n",
        image_column="A ",
        text_column="b",
        id_column="c",
        split_column="d",
        kind_column="e",
    )
    assert [(r.id, r.captions, r.split) for r in done.records] == [
        ("r1", ("a dog",), "test"),
        ("r2", ("b dog",), "test"),
    ]
    assert done.dropped("caption") == {"empty text": 1}


def test_a_name_spelt_exactly_wins(convert: Any) -> None:
    text = "image,Text,text\nok.jpg,a,b\n"
    assert convert(text, text_column="text").records[0].captions == ("b",)
    assert convert(text, text_column="Text").records[0].captions == ("a",)


def test_the_kind_is_of_the_row_or_of_the_option(convert: Any) -> None:
    text = "image,text,kind,box\nok.jpg,a,relation,1 2 30 40\nok.jpg,b,,1 2 30 40\n"
    done = convert(text + "ok.jpg,c,cow,1 2 30 40\n", kind="region")
    assert [r.kind for r in done.records[0].regions] == ["relation", "region"]
    assert done.dropped("region") == {"unknown region kind": 1}


def test_broken_boxes_are_counted_each_under_its_reason(convert: Any) -> None:
    done = convert(
        "image,text,x1,y1,x2,y2\n"
        "ok.jpg,a,1,2,30,40\nok.jpg,b,1,2,thirty,40\nok.jpg,c,1,2,,40\nok.jpg,d,1,2,nan,40\n"
        "ok.jpg,e,1,2,1,40\nok.jpg,f,1,2,161,40\nok.jpg,g,1,2,1e400,40\n"
    )
    assert done.dropped("region") == {
        "box malformed": 2,
        "box not finite": 2,
        "box has no area": 1,
        "box outside the picture": 1,
    }


def test_quoted_cells_of_csv_hold_commas_quotes_and_line_ends(convert: Any) -> None:
    done = convert(
        'image,text\r\nok.jpg,"a ""red"" dog, two cats\r\nand a cow"\r\n\r\nother.png,sea\r\n'
        'ok.jpg,a "plain" quote\r\n'
    )
    assert done.records[0].captions == ('a "red" dog, two cats and a cow', 'a "plain" quote')
    assert done.records[1].captions == ("sea",)
    assert done.count("line")["read"] == 3


def test_lines_are_counted_past_cells_of_several_lines(convert: Any) -> None:
    done = convert('image,"te\nxt"\nok.jpg,"a\nb"\nbroken\nok.jpg,c\n', text_column="te\nxt")
    assert done.lost("line") == {"mine.csv:5": "wrong number of columns"}
    assert done.records[0].captions == ("a b", "c")


@pytest.mark.parametrize("end", ["", '"x', 'other.png,"a cat"\n'])
def test_a_quote_that_is_never_closed_costs_its_own_line(convert: Any, end: str) -> None:
    done = convert(f'image,text\nok.jpg,"a dog\nok.jpg,b dog\nok.jpg,c dog\n{end}')
    assert done.lost("line")["mine.csv:2"] == "malformed row"
    assert done.records[0].captions == ("b dog", "c dog")


def test_a_quote_in_a_tsv_is_an_ordinary_character(convert: Any) -> None:
    done = convert(
        'text\timage\na man\tok.jpg\nno picture\n\tok.jpg\n"a" quoted "man\tok.jpg\n'
        "three\tcolumns\there\na man\thttp://127.0.0.1:1/x.jpg\n",
        "mine.tsv",
    )
    assert done.records[0].captions == ("a man", '"a" quoted "man')
    assert done.lost("line") == {
        "mine.tsv:3": "wrong number of columns",
        "mine.tsv:6": "wrong number of columns",
    }
    assert done.dropped("caption") == {"empty text": 1, "picture: a URL": 1}
    assert done.lost("picture") == {"http://127.0.0.1:1/x.jpg": "a URL"}


def test_a_row_that_is_not_utf8_is_dropped_alone(convert: Any) -> None:
    for name, mark in (("mine.csv", ","), ("mine.tsv", "\t")):
        text = "image|text\nok.jpg|caf\xe9\nok.jpg|a dog\n".replace("|", mark)
        done = convert(text.encode("latin-1"), name)
        assert done.lost("line") == {f"{name}:2": "not UTF-8"}
        assert done.records[0].captions == ("a dog",)


def test_byte_order_mark_and_crlf_are_no_part_of_anything(convert: Any) -> None:
    for name, mark in (("mine.csv", ","), ("mine.tsv", "\t")):
        text = "\ufeffimage|text\r\nok.jpg|a dog\r\n".replace("|", mark)
        assert convert(text, name).records[0].captions == ("a dog",)


def test_a_file_without_header(convert: Any) -> None:
    text = "a dog|ok.jpg\nthe sea|other.png\n"
    for name, delimiter in (("mine.csv", "pipe"), ("mine.csv", "|"), ("mine.x", "|")):
        done = convert(text, name, columns="text,image", delimiter=delimiter)
        assert [r.captions for r in done.records] == [("a dog",), ("the sea",)]
    done = convert("text|image\n" + text, columns="text,image", delimiter="|")
    assert done.count("line")["read"] == 2  # the names were there all the same


def test_every_file_has_its_own_columns(tmp_path: Path, pictures: Path, prepare_store: Any) -> None:
    (tmp_path / "a.csv").write_text("image,text\nok.jpg,a dog\n")
    (tmp_path / "b.tsv").write_text("label\tbbox_xywh\tfile\ndog\t1 2 29 38\tok.jpg\n")
    files = [tmp_path / "a.csv", tmp_path / "b.tsv"]
    (record,) = prepare_store("table", {"annotations": files, "images": pictures}).records
    assert record.captions == ("a dog",)
    assert record.regions == (Region("dog", (1, 2, 30, 40), "object"),)


def test_pictures_without_text_are_kept_if_asked_for(convert: Any) -> None:
    assert len(convert("image\nok.jpg\nother.png\n", allow_empty=True).records) == 2
    done = convert("image,text\nok.jpg,\nother.png,sea\n", allow_empty=True)
    assert [r.captions for r in done.records] == [(), ("sea",)]


@pytest.mark.parametrize(
    ("header", "options", "what", "hint"),
    [
        ("foto,text", {}, "which column is the image is not clear", "--image-column COLUMN"),
        ("image,words", {}, "which column is the text is not clear", "--text-column COLUMN"),
        ("image:text", {}, "which column is the image is not clear", None),
        (
            "foto,words",
            {},
            "the image is not clear from its name; which column is the text is not",
            "--image-column COLUMN --text-column COLUMN",
        ),
        (
            "foto,text,bbox",
            {},
            "what the four numbers of the column 'bbox' are",
            "--image-column COLUMN --box-format xywh (left, top, width, height, as COCO has it) "
            "or --box-format xyxy",
        ),
        (
            "image,text,xmin,ymin",
            {},
            "a box has four columns, and xmin, ymin are not all",
            "--box-columns COLUMN,COLUMN,COLUMN,COLUMN",
        ),
        ("image,text", {"text_column": "txt"}, "has no column 'txt'", "--text-column text"),
        ("file,text", {"image_column": "image"}, "has no column 'image'", "--image-column file"),
        ("image,text", {"id_column": "key"}, "has no column 'key'", "--id-column COLUMN"),
        (
            "image,text,x_1,y_1,x_2,y_2",
            {"box_columns": "x1,y1,x2,y2"},
            "has no column 'x1'",
            "--box-columns x_1,y_1,x_2,y_2",
        ),
        ("image,caption,label", {}, "the text could be in several columns: caption, label", None),
        ("path,file,text", {}, "the image could be in several columns: path, file", None),
        ("image,text,box,bbox", {}, "the box could be in several columns", "--box-columns box"),
        ("image,text,text", {"text_column": "text"}, "has 2 columns 'text'", None),
    ],
)
def test_a_column_that_is_not_there_is_named_with_those_that_are(
    convert: Any, header: str, options: dict[str, str], what: str, hint: str | None
) -> None:
    with pytest.raises(DataError) as caught:
        convert(f"{header}\n", **options)
    error = caught.value
    assert "mine.csv" in error.what
    assert what in error.what
    assert hint is None or error.try_ == hint
    assert error.try_
    if "several" not in what and "has 2" not in what:
        assert error.details == (f"columns there: {header.replace(',', ', ')}",)


def test_a_box_column_that_says_no_format_is_not_guessed(convert: Any) -> None:
    text = 'image,text,bbox\nok.jpg,a dog,"[16, 9, 64, 63]"\n'
    for options in ({}, {"box_columns": "bbox"}):
        with pytest.raises(DataError, match="numbers of the column 'bbox' are is not") as caught:
            convert(text, **options)
        assert str(caught.value.try_).startswith("--box-format xywh")
    (record,) = convert(text, box_format="xywh").records
    assert record.regions[0].box_xyxy_px == (16, 9, 80, 72)


def test_width_and_height_are_sides_of_the_box_or_the_size_of_the_picture(convert: Any) -> None:
    sides = convert("image,text,xmin,ymin,width,height\nok.jpg,a,16,9,64,63\n")
    assert sides.records[0].regions[0].box_xyxy_px == (16, 9, 80, 72)
    both = convert(
        "image,text,xmin,ymin,xmax,ymax,width,height\n"
        "ok.jpg,a,16,9,80,72,64,63\nother.png,b,16,9,80,72,160,90\n"
    )
    assert both.lost("picture") == {"ok.jpg": "size mismatch"}


@pytest.mark.parametrize(
    ("name", "mark", "delimiter"),
    [
        ("mine.csv", ";", ";"),
        ("mine.csv", "\t", "\t"),
        ("mine.csv", "|", "|"),
        ("mine.txt", ",", ","),
        ("mine.tsv", "\t", "\t"),
    ],
)
def test_what_is_between_the_cells_follows_from_the_header(
    convert: Any, tmp_path: Path, name: str, mark: str, delimiter: str
) -> None:
    done = convert(f"image{mark}text{mark}remark\nok.jpg{mark}a dog{mark}-\n", name)
    assert done.records[0].captions == ("a dog",)
    chosen = json.loads((tmp_path / "store-0" / "columns.json").read_text())
    assert chosen[name]["delimiter"] == delimiter


def test_a_tsv_has_tabs_whatever_else_is_in_its_header(convert: Any) -> None:
    done = convert("image\ttext\ta,b,c,d\nok.jpg\ta dog\t-\n", "mine.tsv")
    assert done.records[0].captions == ("a dog",)
    with pytest.raises(DataError, match="which column is the image") as caught:
        convert("image,text\nok.jpg,a dog\n", "mine.tsv")
    assert caught.value.try_ == "--delimiter comma"


def test_a_comma_in_a_name_is_no_delimiter(convert: Any) -> None:
    done = convert("image;text;size, unit, made by, place\nok.jpg;a dog;-\n")
    assert done.records[0].captions == ("a dog",)


def test_decimal_commas_are_numbers_where_the_comma_is_no_delimiter(convert: Any) -> None:
    done = convert(
        "image;text;x1;y1;x2;y2;image_width;image_height\nok.jpg;a;1,5;2;30,25;40;160,0;90\n"
    )
    assert done.records[0].regions[0].box_xyxy_px == (1.5, 2, 30.25, 40)
    done = convert("image;text;box\nok.jpg;a;1,5 2 30,25 40\nok.jpg;b;1,2,30,40\n")
    assert [r.box_xyxy_px for r in done.records[0].regions] == [(1.5, 2, 30.25, 40), (1, 2, 30, 40)]
    done = convert(
        'image,text,x1,y1,x2,y2\nok.jpg,a,"1,5",2,30,40\nok.jpg,b,1,2,30,40\n', delimiter=","
    )
    assert done.dropped("region") == {"box malformed": 1}


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ("ok.jpg,a dog", "image,text"),
        ("ok.jpg,a dog,1,2,30,40,train", "image,text,x1,y1,x2,y2,split"),
        ("a dog;7;x.PNG;", "text,column2,image,column4"),
    ],
)
def test_a_file_without_header_is_told_from_one_with_other_names(
    convert: Any, row: str, columns: str
) -> None:
    with pytest.raises(DataError, match="has no header: line 1 is a row already") as caught:
        convert(f"{row}\n")
    if columns != "text,column2,image,column4":
        assert caught.value.try_ == f"--columns {columns}"
        assert convert(f"{row}\n", columns=columns).count("line")["kept"] == 1
    else:
        assert str(caught.value.try_).startswith("--columns text,column2,image,")


@pytest.mark.parametrize(
    ("said", "split"),
    [
        ("training", "train"),
        ("Training", "train"),
        ("TRAIN", "train"),
        ("validation", "val"),
        ("Valid", "val"),
        ("dev", "val"),
        ("testing", "test"),
        ("Test", "test"),
        ("testA", "testA"),
        ("fold 1", "fold 1"),
    ],
)
def test_splits_are_called_as_everywhere(convert: Any, said: str, split: str) -> None:
    done = convert(f"image,text,split\nok.jpg,a,{said}\nok.jpg,b,{split}\nother.png,c,\n")
    assert done.records[0].split == split
    assert done.records[0].captions == ("a", "b")
    assert convert("image,text\nok.jpg,a\n", split=said).records[0].split == split


def test_what_is_no_table_is_refused(convert: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is an empty file"):
        convert("")
    with pytest.raises(DataError, match="workbook"):
        convert(b"PK\x03\x04\x14\x00\x06\x00rest")
    with pytest.raises(DataError, match="is UTF-16, not UTF-8"):
        convert("image,text\n".encode("utf-16"))
    with pytest.raises(DataError, match="the names of the columns are not UTF-8") as caught:
        convert("image,caf\xe9\n".encode("latin-1"))
    assert caught.value.try_ == "save it as UTF-8 (e.g. iconv -f cp1252 -t UTF-8 FILE > NEW)"
    with pytest.raises(DataError, match="cannot read"):
        convert("", annotations=[tmp_path / "none.csv"])
    with pytest.raises(DataError, match="there is no folder"):
        convert("image,text\n", images=tmp_path / "none")
    with pytest.raises(DataError, match="nothing to keep"):
        convert("image,text\n")
    with pytest.raises(UsageError, match="--delimiter 'xy' is no single character"):
        convert("image,text\n", delimiter="xy")
    with pytest.raises(UsageError, match="neither one column nor four"):
        convert("image,text\n", box_columns="a,b")


def test_several_processes_make_the_same_store(convert: Any) -> None:
    rows = "".join(
        f'{name},"text {i}\nof {name}"\n' for i in range(3) for name in ("ok.jpg", "other.png")
    )
    text = f"image,text\n{rows}broken\n"
    one, two = (convert(text, workers=n, shard_records=1) for n in (1, 2))
    assert (one.records, one.ledger) == (two.records, two.ledger)
    assert one.records[1].captions == tuple(f"text {i} of other.png" for i in range(3))
