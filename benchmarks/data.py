"""Throughput of the data side, as ratios measured in one run: ``python benchmarks/data.py``.

- prepare: ``prepare-data coco`` against reading the same JSON with the standard library;
- load: decode + augment + collate against a plain torchvision pipeline on the same pictures;
- packed: pictures inside the store against pictures in place.

Both sides of a ratio take turns, so that both see the same machine; the ratio is the median over
the turns. Pictures are those of ``--coco`` repeated under other names (real annotations with
their outlines, 5 captions and about 7 boxes a picture), or made up where that folder is missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.made_coco import made_up_pictures, make_coco, sample_pictures  # noqa: E402
from benchmarks.measuring import Measure, Spent, compare, say, timed  # noqa: E402

WORKERS = 2


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        pictures: of the COCO folder that is prepared.
        records: of the stores that are read.
        sides: of the pictures that a model sees, pixels.
        batch: pictures a batch.
        batches: a turn of the loader.
        turns: of each side of a ratio.
    """

    pictures: int = 20_000
    records: int = 2_000
    sides: tuple[int, ...] = (224, 384)
    batch: int = 32
    batches: int = 8
    turns: int = 11


# ---------------------------------------------------------------------- measures


def prepared(coco: Path, store: Path, *, workers: int = WORKERS, pack: bool = False) -> int:
    """Run ``prepare-data``; the number of records."""
    from xvlm_core.sources.prepare import prepare

    options = {"root": coco, "workers": workers, "pack": pack}
    return prepare("coco", store, options, command="benchmark", overwrite=True).records


def measure_prepare(coco: Path, store: Path, size: Size) -> Iterator[Measure]:
    """``prepare-data`` against reading its input."""

    def read() -> None:
        for file in sorted((coco / "annotations").iterdir()):
            with open(file, encoding="utf-8") as opened:
                json.load(opened)

    for workers in (WORKERS, 1):
        yield compare(
            f"prepare-data, {workers} worker{'s' * (workers > 1)}, against json.load",
            lambda: timed(lambda: prepared(coco, store, workers=workers)),  # noqa: B023
            lambda: timed(read),
            size.pictures,
            (size.turns + 1) // 2,
            0.5 if workers == WORKERS else None,
        )


class Steps:
    """A feed of one kind of sample, as the pre-training task has it."""

    def __init__(self, store: Any, side: int, size: Size, kind: str) -> None:
        from xvlm_core.data.feeds import StoreStream
        from xvlm_core.data.samples import SampleMaker, SampleSettings
        from xvlm_core.data.tokenizer import Tokenizer

        settings = SampleSettings(
            image_size=side, grid=side // 32, max_words=30, max_tokens=40, max_regions=5
        )
        self.maker = SampleMaker(settings, Tokenizer.bert_base_uncased(), 0)
        self.kind = kind
        self.stream = StoreStream([store], "train", size.batch, 0, kind)

    def batches(self, step: int, part: int = 0) -> tuple[Any, ...]:
        """The batch of a step."""
        from xvlm_core.data.collate import pretrain_batch

        if self.kind == "pictures":
            return (self._pictures(step),)
        make = self.maker.of_caption if self.kind == "captions" else self.maker.of_regions
        samples, dropped = self.stream.samples(step, part, make)
        return (pretrain_batch(samples, dropped=dropped),)

    def _pictures(self, step: int) -> Pictures:
        """Decode, augment, collate: what a captioned sample does with its picture, without text."""
        import numpy as np
        import torch

        from xvlm_core.data import augment
        from xvlm_core.data.samples import Sample

        def make(record: Any, source: Any, epoch: int) -> Sample:
            rng = augment.generator(0, epoch, record.id, "caption")
            image = self.maker._read(source)
            side = self.maker.settings.image_size
            return Sample(record.id, augment.pretrain_picture(image, rng, side), ())

        samples, _ = self.stream.samples(step, 0, make)
        whole = np.stack([sample.picture for sample in samples])
        return Pictures(torch.from_numpy(whole).permute(0, 3, 1, 2).contiguous())


class Pictures(NamedTuple):
    """A batch of pictures alone."""

    pictures_ICHW: Any


class Plain:
    """What a torchvision user writes: a list of files and the same transforms."""

    def __init__(self, files: Sequence[Path], side: int) -> None:
        from torchvision import transforms as t

        from xvlm_core.data.augment import CLIP_MEAN, CLIP_STD

        self.files = files
        # each of the two operations with probability 0.5, as in the released code
        some = [t.RandomApply([t.RandAugment(1, 7)], 0.5) for _ in range(2)]
        bicubic = t.InterpolationMode.BICUBIC
        self.transform = t.Compose(
            [
                t.RandomResizedCrop(side, scale=(0.2, 1.0), interpolation=bicubic),
                t.RandomHorizontalFlip(),
                *some,
                t.ToTensor(),
                t.Normalize(CLIP_MEAN, CLIP_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB"))


class Endless:
    """Positions in random order, pass after pass."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(0)
        while True:
            yield from rng.sample(range(self.count), self.count)


def measure_loading(store: Any, files: Sequence[Path], size: Size) -> Iterator[Measure]:
    """Batches a second, both with two loader processes.

    Ours arrive as bytes and are normalised on the device that trains; torchvision's arrive as
    normalised floats. What it takes to normalise ours here is the third measure of each side.
    """
    import torch

    from xvlm_core.train.feeding import feed_from

    kinds = (("pictures", False), ("captions", False), ("regions", False), ("captions", True))
    for side, (kind, normalise) in itertools.product(size.sides, kinds):
        plain, feed = (
            _plain(files, side, size),
            feed_from(Steps(store, side, size, kind), 1, WORKERS),
        )
        made = (batch for parts in feed for batches in parts for batch in batches)
        ours = ((batch.to("cpu") if normalise else batch).pictures_ICHW for batch in made)
        try:
            for pictures, floats in ((next(plain), True), (next(ours), normalise)):
                assert pictures.shape[1:] == (3, side, side)
                assert pictures.dtype == (torch.float32 if floats else torch.uint8)
            yield compare(
                f"load {kind} at {side} px{' and normalise here' * normalise}, against torchvision",
                lambda: _turn(ours, size),  # noqa: B023
                lambda: _turn(plain, size),  # noqa: B023
                size.batch * size.batches,
                size.turns,
                1.3 if kind == "pictures" else None,
            )
        finally:
            feed.close()
            plain._shutdown_workers()


def _turn(batches: Iterator[Any], size: Size) -> Spent:
    """What is spent on the pictures of so many batches (a few records may give no sample)."""
    for _ in range(3 * WORKERS):  # those made while the other had its turn
        next(batches)
    found: list[int] = []
    spent = timed(lambda: found.extend(len(next(batches)) for _ in range(size.batches)))
    return spent.times(size.batch * size.batches / sum(found))


def _plain(files: Sequence[Path], side: int, size: Size) -> Any:
    from torch.utils.data import DataLoader

    return iter(
        DataLoader(
            Plain(files, side),
            size.batch,
            sampler=Endless(len(files)),
            num_workers=WORKERS,
            worker_init_fn=_one_thread,
        )
    )


def _one_thread(_: int) -> None:
    import torch

    torch.set_num_threads(1)


def measure_packed(in_place: Any, packed: Any, size: Size) -> Iterator[Measure]:
    """One pass over both stores in the order of training."""
    from xvlm_core.data.images import read_picture
    from xvlm_core.data.stream import Stream

    def read(store: Any, decode: bool) -> None:
        stream = Stream([len(store)], size.batch, 0, name="images")
        for step in range(1, size.records // size.batch + 1):
            for place in stream.places(step):
                source = store.picture(store[place.record])
                if decode:
                    read_picture(source)
                elif isinstance(source, Path):
                    source.read_bytes()

    read(packed, True)  # whatever is opened once
    files = [len(opened_by(lambda: read(store, False))) for store in (packed, in_place)]  # noqa: B023
    for decode in (True, False):
        yield compare(
            f"packed against in place, {'read and decode' if decode else 'read'}",
            lambda: timed(lambda: read(packed, decode)),  # noqa: B023
            lambda: timed(lambda: read(in_place, decode)),  # noqa: B023
            size.records // size.batch * size.batch,
            size.turns,
            files_packed=files[0],
            files_in_place=files[1],
        )


_opened: set[str] | None = None


def opened_by(work: Callable[[], object]) -> set[str]:
    """The files that some work opens."""
    global _opened
    _opened = set()
    sys.addaudithook(_note_opened)
    work()
    found, _opened = _opened, None
    return found


def _note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.add(str(arguments[0]))


# ---------------------------------------------------------------------- all of it


def run(size: Size, coco: Path | None) -> dict[str, Any]:
    """All measures, as plain JSON."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="xvlm-benchmark-") as name:
        folder = Path(name)
        real = coco is not None and (coco / "annotations").is_dir()
        say("making the data")
        pictures = (
            sample_pictures(coco)  # type: ignore[arg-type]
            if real
            else made_up_pictures(folder / "made-up")
        )
        make_coco(folder / "many", pictures, size.pictures, 0)
        make_coco(folder / "few", pictures, size.records, size.records)
        measures = list(measure_prepare(folder / "many", folder / "store", size))

        from xvlm_core.data.store import Store  # after it: workers inherit little

        for store in ("in-place", "packed"):
            prepared(folder / "few", folder / store, pack=store == "packed")
        in_place, packed = Store.open(folder / "in-place"), Store.open(folder / "packed")
        files = sorted((folder / "few" / "train2017").iterdir())
        measures += measure_loading(in_place, files, size)
        measures += measure_packed(in_place, packed, size)
    found = [{**asdict(m), "ratio": m.ratio, "cpu_ratio": m.cpu_ratio} for m in measures]
    return {"machine": machine(real), "measures": found}


def machine(real: bool) -> dict[str, Any]:
    """What it ran on."""
    names = ("torch", "torchvision", "pillow", "numpy")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": cores,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "pictures": "photographs of COCO" if real else "made up",
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        ", ".join(f"{name} {value}" for name, value in result["machine"].items()),
        "",
        "| measured | a second | other, a second | ratio | by processor time | goal |",
        "|---|---|---|---|---|---|",
    ]
    for m in result["measures"]:
        goal = "" if m["goal"] is None else f"{m['goal']} x"
        name = m["name"] + "".join(f", {key} {value}" for key, value in m["notes"].items())
        lines.append(
            f"| {name} | {m['ours']:,.0f} | {m['theirs']:,.0f} "
            f"| {m['ratio']:.2f} x | {m['cpu_ratio']:.2f} x | {goal} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument(
        "--coco",
        type=Path,
        default=REPOSITORY.parent / "shared" / "data" / "coco",
        help="folder of COCO 2017 to repeat; where it is missing, pictures are made up",
    )
    parser.add_argument("--turns", type=int, default=Size.turns, help="of both sides of a ratio")
    given = parser.parse_args(arguments)
    result = run(Size(turns=given.turns), given.coco)
    print(json.dumps(result, indent=2) if given.json else table(result))


if __name__ == "__main__":
    main()
