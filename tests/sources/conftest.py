from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from xvlm_core.data.manifest import Manifest
from xvlm_core.data.records import Record
from xvlm_core.data.store import Store
from xvlm_core.sources.prepare import prepare


@dataclass(frozen=True)
class Prepared:
    manifest: Manifest
    records: list[Record]
    ledger: list[dict[str, Any]]

    def count(self, item: str) -> dict[str, Any]:
        return self.manifest.counts[item]

    def dropped(self, item: str) -> dict[str, int]:
        return dict(self.manifest.counts[item]["dropped"])

    def lost(self, item: str) -> dict[str, str]:
        """Reason by id."""
        lines = [x for x in self.ledger if x["what"] == "dropped" and x["item"] == item]
        return {line["id"]: line["reason"] for line in lines}


Prepare = Callable[..., Prepared]


@pytest.fixture
def prepare_store(tmp_path: Path) -> Prepare:
    """Prepare into a fresh folder and read everything back; balance is checked every time."""
    made = []

    def run(source: str, options: Mapping[str, object], **settings: Any) -> Prepared:
        folder = tmp_path / f"store-{len(made)}"
        made.append(folder)
        options = {"workers": 1, **options}
        manifest = prepare(source, folder, options, command="xvlm prepare-data ...", **settings)
        store = Store.open(folder)
        store.verify()
        records = [store[i] for i in range(len(store))]
        lines = (folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
        ledger = [json.loads(line) for line in lines]
        assert manifest == store.manifest
        for item, count in manifest.counts.items():
            dropped = sum(count["dropped"].values())
            assert count["read"] == count["kept"] + dropped, item
            listed = [x for x in ledger if x["item"] == item and x["what"] == "dropped"]
            assert len(listed) == dropped, item
        for item, field in (
            ("caption", "captions"),
            ("region", "regions"),
            ("absent", "absent"),
            ("question", "questions"),
            ("proposal", "proposals_xyxy_px"),
        ):
            assert sum(len(getattr(r, field)) for r in records) == kept(manifest, item), item
        assert len(records) == kept(manifest, "picture") + kept(manifest, "pair")
        return Prepared(manifest, records, ledger)

    return run


def kept(manifest: Manifest, item: str) -> int:
    return int(manifest.counts.get(item, {"kept": 0})["kept"])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with ok.jpg and other.png (160 x 90), turned.jpg (stored 60 x 100, shown 100 x 60),
    square.jpg (64 x 64, turned by EXIF), cut.jpg (truncated), empty.jpg and page.jpg (no picture).
    """
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (160, 90), (200, 30, 30)).save(folder / "ok.jpg")
    Image.new("RGB", (160, 90), (30, 30, 200)).save(folder / "other.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 100)).save(folder / "turned.jpg", exif=exif)
    Image.new("RGB", (64, 64)).save(folder / "square.jpg", exif=exif)
    Image.effect_noise((160, 90), 50).save(folder / "whole.jpg")
    data = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_text("<html>not found</html>")
    return folder
