"""A folder of COCO of any size: sample pictures (or made-up ones) repeated under other names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BOXES, _OF = 5, 8
"""Of 8 boxes of a sample picture 5 are used: 7 a picture, as in all of COCO."""


@dataclass(frozen=True)
class Picture:
    """A picture and its annotations in COCO's own words."""

    path: Path
    image: dict[str, Any]
    boxes: tuple[dict[str, Any], ...]
    captions: tuple[dict[str, Any], ...]


def sample_pictures(coco: Path) -> list[Picture]:
    """All pictures of a folder of COCO 2017."""
    found = []
    for file in sorted((coco / "annotations").glob("instances_*.json")):
        subset = file.stem.split("_")[1]
        instances = json.loads(file.read_bytes())
        captions = json.loads(file.with_name(f"captions_{subset}.json").read_bytes())
        for image in instances["images"]:
            boxes = [a for a in instances["annotations"] if a["image_id"] == image["id"]]
            found.append(
                Picture(
                    coco / subset / image["file_name"],
                    image,
                    tuple(box for at, box in enumerate(boxes) if at % _OF < _BOXES),
                    tuple(c for c in captions["annotations"] if c["image_id"] == image["id"]),
                )
            )
    return found


def made_up_pictures(folder: Path, count: int = 40) -> list[Picture]:
    """Pictures like photographs: smooth noise and shapes, 640 x 480, JPEG of quality 90."""
    import numpy as np
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    words = ["a", "dog", "near", "the", "red", "house", "with", "two", "trees", "man", "holding"]
    found = []
    for number in range(count):
        pixels = np.zeros((480, 640, 3))
        for cells in (4, 16, 64, 256):
            noise = rng.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
            resized = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
            pixels += np.asarray(resized) / cells**0.5
        picture = Image.fromarray((pixels / pixels.max() * 255).astype(np.uint8))
        boxes = []
        for category in rng.integers(1, 81, 7).tolist():
            x, y = int(rng.integers(0, 500)), int(rng.integers(0, 380))
            w, h = int(rng.integers(20, 640 - x)), int(rng.integers(20, 480 - y))
            colour = tuple(rng.integers(0, 256, 3).tolist())
            ImageDraw.Draw(picture).ellipse((x, y, x + w, y + h), colour)
            at = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            outline = np.stack([x + w / 2 * (1 + np.cos(at)), y + h / 2 * (1 + np.sin(at))], 1)
            boxes.append(
                {
                    "segmentation": [outline.round(2).reshape(-1).tolist()],
                    "area": w * h * 0.785,
                    "iscrowd": 0,
                    "bbox": [x + 0.25, y + 0.25, w - 0.5, h - 0.5],
                    "category_id": category,
                }
            )
        path = folder / f"{number}.jpg"
        picture.save(path, quality=90)
        captions = tuple({"caption": " ".join(rng.choice(words, 10))} for _ in range(5))
        url = f"http://farm9.staticflickr.com/8186/{8119368305 + number}_4e622c8349_z.jpg"
        image = {"license": 3, "height": 480, "width": 640, "flickr_url": url}
        found.append(Picture(path, image, tuple(boxes), captions))
    return found


def make_coco(folder: Path, pictures: Sequence[Picture], count: int, copies: int) -> None:
    """A folder of COCO with ``count`` pictures: the first ``copies`` are files of their own."""
    names = folder / "train2017"
    names.mkdir(parents=True)
    (folder / "annotations").mkdir()
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        picture = pictures[number % len(pictures)]
        path = names / f"{number:012d}.jpg"
        if number > copies and number > copies + len(pictures):
            os.link(names / f"{number - len(pictures):012d}.jpg", path)
        else:
            shutil.copyfile(picture.path, path)
        images.append({**picture.image, "id": number, "file_name": path.name})
        for box in picture.boxes:
            boxes.append({**box, "image_id": number, "id": len(boxes) + 1})
        for caption in picture.captions:
            captions.append({**caption, "image_id": number, "id": len(captions) + 1})
    categories = [{"id": id, "name": f"thing {id}"} for id in range(1, 91)]
    for name, said in (("instances", boxes), ("captions", captions)):
        content = {"images": images, "annotations": said, "categories": categories}
        with open(folder / "annotations" / f"{name}_train2017.json", "w") as file:
            json.dump(content, file)
