"""Comparing a prepared store with the figures agreed for the samples: each figure is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from tests.conftest import REPOSITORY
from xvlm_core.data.records import Record
from xvlm_core.data.store import Store
from xvlm_core.sources.drafts import Draft, Event, Lazy
from xvlm_core.sources.prepare import prepare
from xvlm_core.sources.registry import checked_options, find_source

SHARED = REPOSITORY.parent / "shared" / "data"
KARPATHY = str(SHARED / "coco_karpathy" / "dataset_coco.json")
FLICKR = str(SHARED / "flickr30k" / "dataset_flickr30k.json") + ":all"
COCO_2014 = SHARED / "coco_2014_images"

INVALID = ("box not finite", "box has no area", "box outside the picture", "box malformed")


def agreed() -> dict[str, Any]:
    path = SHARED / "expected_counts.json"
    return json.loads(path.read_text())["files"] if path.is_file() else {}


class Made:
    """A prepared store: what was counted, and its records."""

    def __init__(self, store: Store) -> None:
        self.counts = store.manifest.counts
        self.records: list[Record] = [store[i] for i in range(len(store))]

    def read(self, item: str) -> int:
        return int(self.counts.get(item, {"read": 0})["read"])

    def kept(self, item: str) -> int:
        return int(self.counts.get(item, {"kept": 0})["kept"])

    def dropped(self, item: str, *reasons: str) -> int:
        found = self.counts.get(item, {"dropped": {}})["dropped"]
        return sum(int(found.get(reason, 0)) for reason in reasons)

    def by_split(self, count: Callable[[Record], int]) -> dict[str, int]:
        found: dict[str, int] = {}
        for record in self.records:
            found[record.split] = found.get(record.split, 0) + count(record)
        return found


class Figures:
    """The agreed figures of one file: each must be asked for."""

    def __init__(self, figures: Mapping[str, Any]) -> None:
        self._figures, self._asked = figures, set[str]()
        self._parts: list[tuple[str, Figures]] = []

    def __getitem__(self, name: str) -> Any:
        self._asked.add(name)
        return self._figures[name]

    def __contains__(self, name: str) -> bool:
        return name in self._figures

    def part(self, name: str) -> Figures:
        self._parts.append((name, Figures(self[name])))
        return self._parts[-1][1]

    def not_asked(self) -> list[str]:
        inner = [f"{name}.{key}" for name, part in self._parts for key in part.not_asked()]
        return sorted(set(self._figures) - self._asked) + inner


class Run:
    """Prepares sources into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, 0

    def __call__(self, source: str, **options: Any) -> Made:
        store = self.folder / f"store-{self.made}"
        self.made += 1
        prepare(source, store, {**options, "workers": 1}, command="xvlm prepare-data ...")
        return Made(Store.open(store))

    def events(self, name: str, **options: Any) -> Iterator[Event]:
        """What a source says, before anything is checked."""
        source = find_source(name)
        values = checked_options(source, options)
        return source.plan({o.name: values[o.name] for o in source.options}).events

    def drafts(self, name: str, **options: Any) -> list[Draft]:
        """The pictures of a source, before anything is checked."""
        events = self.events(name, **options)
        expanded = (event.expand() if isinstance(event, Lazy) else [event] for event in events)
        return [event for found in expanded for event in found if isinstance(event, Draft)]

    def pictures(self, names: list[str]) -> Path:
        """A folder with made pictures of these names."""
        folder = self.folder / "pictures"
        folder.mkdir(exist_ok=True)
        for name in names:
            Image.new("RGB", (16, 9)).save(folder / name)
        return folder


Check = Callable[[Figures, Run], None]


def boxes(figures: Figures, run: Run, source: str, **options: Any) -> Made:
    """The figures of cleaning boxes, as every data set of boxes has them.

    They are of files, whether the pictures are there or not; only of Visual Genome, boxes on
    pictures that are not there are figures of their own.
    """
    apart = "read_on_images_missing_on_disk"

    def missing(made: Made, item: str = "region") -> int:
        reason = "missing" if item == "picture" else "picture: missing"
        return 0 if apart in figures else made.dropped(item, reason)

    def again(key: str, **more: Any) -> Made | None:
        if key not in figures:
            return None
        other = run(source, **{**options, **more})
        assert other.kept("region") + missing(other) == figures[key], key
        return other

    made = run(source, **options)
    read = made.read("region")
    if apart in figures:
        assert made.dropped("region", "picture: missing") == figures[apart]
        read -= figures[apart]
    assert read == figures["read"]
    assert made.kept("region") + missing(made) == figures["kept"]
    for key, reasons in (
        ("box_below_1_percent", ("box too small",)),
        ("invalid_box", INVALID),
        ("empty_text", ("empty text",)),
        ("text_overlap_above_75_percent", ("text overlap",)),
    ):
        if key in figures:
            assert made.dropped("region", *reasons) == figures[key], key
    if "images_with_a_kept_box" in figures:
        with_box = sum(bool(record.regions) for record in made.records)
        assert with_box + missing(made, "picture") == figures["images_with_a_kept_box"]
    again("kept_if_box_check_is_int", invalid_boxes="int")
    again("kept_if_box_check_is_half_px", invalid_boxes="half-px")
    again("kept_if_overlap_is_measured_against_the_shorter_text", text_overlap="shorter")
    again("kept_after_removing_karpathy_val_and_test_images", exclude=[KARPATHY], split="train")
    again("kept_after_also_removing_flickr30k_photos", exclude=[KARPATHY, FLICKR], split="train")
    alone = again("kept_without_crowd_boxes", crowd=False)
    if alone is not None:
        assert alone.dropped("region", "crowd") == figures["crowd_boxes_among_read"]
    alone = again("kept_without_group_and_depiction_boxes", groups=False, depictions=False)
    if alone is not None:
        assert alone.dropped("region", "group") == figures["group_boxes_among_read"]
    return made
