"""What is drawn: the right boxes at the right places, and nothing that a text can do to a page."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests.cards.stores import EVERYTHING, make_store, paint
from xvlm_core.cards.builder import make_card
from xvlm_core.cards.examples import choose_examples, examples
from xvlm_core.cards.files import write_samples
from xvlm_core.cards.page import card_page
from xvlm_core.cards.sheet import TILE_PX, contact_sheet, drawn_regions
from xvlm_core.data.records import Answer, Question, Record, Region, Statement
from xvlm_core.data.store import Store
from xvlm_core.drawing import colour_of
from xvlm_core.errors import OutputError

EVIL = '</title></style><script>alert(1)</script><img src=x onerror="alert(2)">\u202e&"\'\u2066'


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "mine")


class Page(HTMLParser):
    """Elements, attributes and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(store: Store) -> Page:
    return Page(card_page(store, range(len(store)), make_card(store)))


# ------------------------------------------------------------------ which


def test_the_same_examples_every_time_and_others_for_another_seed(tmp_path: Path) -> None:
    records = [Record(f"r{i}", (f"{i}.png",), 10, 10, captions=("a",)) for i in range(50)]
    store = make_store(tmp_path / "mine", records, pictures=False)
    chosen = choose_examples(store, 6)
    assert chosen == choose_examples(store, 6)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 6
    assert any(choose_examples(store, 6, seed) != chosen for seed in (1, 2))


def test_every_split_and_every_kind_is_shown_before_more_of_the_same(tmp_path: Path) -> None:
    plain = [Record(f"r{i}", (f"{i}.png",), 10, 10, captions=("a",)) for i in range(300)]
    question = Record("q", ("q.png",), 10, 10, questions=(Question("1", "what?"),), captions=("a",))
    val = Record("v", ("v.png",), 10, 10, captions=("a",), split="val")
    records = [*plain[:150], question, *plain[150:], val]
    store = make_store(tmp_path / "mine", records, pictures=False)
    chosen = {store[i].id for i in choose_examples(store, 2)}
    assert chosen == {"q", "v"}


def test_no_more_examples_than_records(store: Store) -> None:
    assert choose_examples(store, 10) == [0, 1, 2, 3]
    assert choose_examples(store, 0) == []


def test_boxes_of_each_kind_are_drawn_when_there_are_too_many() -> None:
    box = (0.0, 0.0, 5.0, 5.0)
    objects = [Region(f"object {i}", box, "object") for i in range(50)]
    record = Record("a", ("a.png",), 10, 10, regions=(*objects, Region("last", box, "region")))
    assert [r.text for r in drawn_regions(record, 3)] == ["object 0", "object 1", "last"]
    assert len(drawn_regions(record, 100)) == 51


# ------------------------------------------------------------------ the sheet


def test_a_box_is_drawn_in_its_colour_at_its_place(tmp_path: Path) -> None:
    region = Region("a", (50.0, 25.0, 100.0, 50.0), "object")
    record = Record("one", ("one.png",), 100, 50, regions=(region,))
    sheet = contact_sheet(make_store(tmp_path / "mine", [record]), [0])
    pixels = sheet.load()
    assert pixels is not None
    found = [
        (x, y)
        for x in range(sheet.width)
        for y in range(sheet.height)
        if pixels[x, y] == colour_of(0)
    ]
    scale = TILE_PX / 100
    left, right = min(x for x, _ in found), max(x for x, _ in found)
    assert right - left + 1 == round(50 * scale)
    assert right == sheet.width - 17  # the margin
    bottom = max(y for _, y in found)
    edge = [x for x, y in found if y == bottom]
    assert (min(edge), max(edge)) == (left, right)


def test_pictures_of_a_pair_stand_side_by_side(store: Store) -> None:
    blue = (90, 140, 200)
    sheet = contact_sheet(store, [3])
    row = [sheet.getpixel((x, 60)) == blue for x in range(sheet.width)]
    runs = [run for run in re.findall("1+", "".join("1" if on else "0" for on in row))]
    assert len(runs) == 2


def test_a_picture_that_cannot_be_read_is_a_grey_field(tmp_path: Path) -> None:
    store = make_store(tmp_path / "mine", EVERYTHING[:1], pictures=False)
    sheet = contact_sheet(store, [0])
    assert sheet.getpixel((sheet.width - 30, 60)) == (200, 200, 200)
    assert next(iter(examples(store, [0]))).pictures[0].problem == "missing"
    assert "one.png: missing" in page_of(store).texts


def test_columns(store: Store) -> None:
    narrow, wide = contact_sheet(store, range(4), 1), contact_sheet(store, range(4), 4)
    assert wide.width > 3 * narrow.width
    assert narrow.height > wide.height


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000)])
def test_extreme_shapes_are_drawn(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    region = Region("x" * 500, (0.0, 0.0, float(width), float(height)))
    record = Record("one", ("one.png",), width, height, regions=(region,), captions=("w" * 5000,))
    store = make_store(tmp_path / "mine", [record])
    assert contact_sheet(store, [0]).width == TILE_PX + 32
    assert len(page_of(store).all("img")) == 1


def test_a_changed_picture_is_shown_with_both_sizes(store: Store, tmp_path: Path) -> None:
    paint(tmp_path / "pictures", {"one.png": (40, 20)})
    shown = next(iter(examples(store, [0]))).pictures[0]
    assert shown.image is not None
    assert shown.problem == "40 x 20, the record says 100 x 50"
    contact_sheet(store, [0])


# ------------------------------------------------------------------ the page


def test_texts_of_the_data_are_inert_in_the_page(tmp_path: Path) -> None:
    box = (0.0, 0.0, 5.0, 5.0)
    record = Record(
        EVIL,
        ("one.png",),
        10,
        10,
        captions=(EVIL,),
        regions=(Region(EVIL, box, "phrase"),),
        absent=(EVIL,),
        questions=(Question("1", EVIL, (Answer(EVIL),)),),
        statement=Statement(EVIL),
        split=EVIL,
        source=EVIL,
    )
    store = make_store(tmp_path / "mine", [record], dropped=[EVIL], source=EVIL)
    page = page_of(store)
    assert not page.all("script")
    assert len(page.all("img")) == 1
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    text = card_page(store, [0], make_card(store))
    assert not set("\u202e\u2066") & set(text)
    assert text.count("</title>") == text.count("<title>")
    said = [text for text in page.texts if "<script>alert(1)</script>" in text]
    assert len(said) >= 8


def test_the_page_needs_and_may_fetch_nothing(store: Store) -> None:
    page = page_of(store)
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "base-uri 'none'; form-action 'none'" in policy
    css = page.texts[page.texts.index("mine: data card") + 2]
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy  # the one style that the page has
    links = [
        value
        for _, found in page.elements
        for name, value in found.items()
        if name in ("href", "src", "action", "srcset", "data")
    ]
    assert all(link and link.startswith(("#", "data:image/jpeg;base64,")) for link in links)
    assert not page.all("link")
    assert not page.all("iframe")
    assert not [found for _, found in page.elements if "style" in found]  # the policy stops them
    targets = {found["id"] for _, found in page.elements if "id" in found}
    assert {link[1:] for link in links if link and link.startswith("#")} <= targets


def test_pictures_are_jpegs_with_an_alternative_text(tmp_path: Path) -> None:
    record = Record("one", ("one.png",), 1500, 700, captions=('a "dog"',))
    [image] = page_of(make_store(tmp_path / "mine", [record])).all("img")
    assert image["alt"] == 'a "dog"'
    assert image["src"] is not None
    data = base64.b64decode(image["src"].partition(",")[2])
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "JPEG"
        assert picture.size == (640, 299)


def test_boxes_are_in_pixels_of_the_record_and_tied_to_their_texts(store: Store) -> None:
    page = page_of(store)
    assert page.all("svg")[0]["viewbox"] == "0 0 100 50"
    rects = [found for found in page.all("rect") if found.get("class") != "proposal"]
    assert {"x": "50", "y": "25", "width": "50", "height": "25"} in rects
    assert len(page.all("rect")) == 6 + 2
    ties = [found["class"] for found in page.all("a") if "class" in found]
    assert len(ties) == 2 * 6
    assert all(ties.count(tie) % 2 == 0 for tie in ties)


def test_the_page_has_the_tables(store: Store) -> None:
    texts = page_of(store).texts
    for title in ("what is in it", "duplicates", "longest texts", "собака"):
        assert title in texts


# ------------------------------------------------------------------ the files


def test_both_files_are_written_and_replaced(store: Store, tmp_path: Path) -> None:
    png, html = tmp_path / "out" / "a.png", tmp_path / "out" / "a.html"
    for _ in range(2):
        write_samples(store, 4, png, html)
    with Image.open(png) as sheet:
        assert sheet.width > 3 * TILE_PX
    assert html.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in png.parent.iterdir()) == ["a.html", "a.png"]


def test_nothing_is_written_into_the_store(store: Store, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store.folder)
    for folder in (store.folder, tmp_path / "link"):
        with pytest.raises(OutputError, match="inside the store"):
            write_samples(store, 1, folder / "a.png", folder / "a.html")
    store.verify()
    assert not list(store.folder.glob("a.*"))


def test_a_place_that_is_no_folder_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_samples(store, 1, tmp_path / "file" / "a.png", tmp_path / "file" / "a.html")
