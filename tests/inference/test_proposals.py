"""Proposals are found again by the names of a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xvlm_core.data.records import Record
from xvlm_core.data.store import Store
from xvlm_core.errors import DataError
from xvlm_core.inference.proposals import ProposalIndex
from xvlm_core.sources.prepare import prepare

BOX = (1.0, 2.0, 30.0, 40.0)


def index_of(tmp_path: Path, *lines: object) -> ProposalIndex:
    path = tmp_path / "boxes.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return ProposalIndex.of_file(path)


def test_json_lines_are_found_by_path_and_by_name(tmp_path: Path) -> None:
    index = index_of(
        tmp_path,
        {"image": "a/1.jpg", "boxes": [[1, 2, 30, 40, 0.7]]},
        {"image": "a/2.jpg", "boxes": [[5, 6, 7, 8]]},
        {"image": "b/2.jpg", "boxes": []},
    )
    assert index.n_pictures == 3
    assert index.of_picture(Path("elsewhere/1.jpg"), 50, 50).boxes_xyxy_px.tolist() == [list(BOX)]
    assert index.of_picture(Path("a/2.jpg"), 50, 50).boxes_xyxy_px.tolist() == [[5, 6, 7, 8]]
    assert index.of_picture(Path("2.jpg"), 50, 50).missing == "several pictures of that name"
    assert index.of_picture(Path("3.jpg"), 50, 50).missing == "no proposals"


def test_dets_json_of_the_released_code(tmp_path: Path) -> None:
    path = tmp_path / "dets.json"
    path.write_text(json.dumps({"581857": [[1, 2, 29, 38, 0.9, "x"]], "7": []}))
    index = ProposalIndex.of_file(path)
    named = Path("train2014/COCO_train2014_000000581857.jpg")
    assert index.of_picture(named, 50, 50).boxes_xyxy_px.tolist() == [list(BOX)]
    record = Record(id="x", images=("q.jpg",), width=50, height=50, same_as=("coco:581857",))
    assert index.of_record(record).boxes_xyxy_px.tolist() == [list(BOX)]


@pytest.mark.parametrize(
    "text",
    [
        '{"image": "a.jpg", "boxes": [[1, 2, 3]]}',
        '{"image": "a.jpg", "boxes": [[1, 2, 3, NaN]]}',
        '{"image": "a.jpg"}',
        '{"boxes": [[1, 2, 3, 4]]}',
        '{"5": 3}',
        "[]",
        "nonsense",
        "",
    ],
)
def test_what_is_malformed_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        ProposalIndex.of_file(path)
    assert caught.value.where
    assert str(path) in caught.value.where


def test_boxes_of_another_size_are_not_of_this_picture(tmp_path: Path) -> None:
    options = {"train": 0, "val": 2, "test": 0, "unseen": 0, "workers": 1}
    prepare("world", tmp_path / "with", {**options, "proposals": True}, command="x")
    prepare("world", tmp_path / "without", options, command="x")
    index = ProposalIndex.of_stores([Store.open(tmp_path / "with")])
    plain = Store.open(tmp_path / "without")
    assert plain.manifest.fingerprint != Store.open(tmp_path / "with").manifest.fingerprint
    for number in range(2):
        record = plain[number]
        assert not record.proposals_xyxy_px
        found = index.of_record(record)
        scene = sorted(tuple(thing["box_xyxy_px"]) for thing in record.meta["scene"])
        assert sorted(map(tuple, found.boxes_xyxy_px.tolist())) == scene
        other = Record(id="x", images=record.images, width=999, height=999)
        assert index.of_record(other).missing == "proposals of another size"
