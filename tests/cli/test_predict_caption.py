from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Run
from tests.tasks.captions import write_captioner
from xvlm_cli.predict_caption import _how
from xvlm_cli.predict_request import CaptionOptions
from xvlm_core.inference.generate import Sampling
from xvlm_core.inference.writing import How


@pytest.fixture(scope="session")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_captioner(tmp_path_factory.mktemp("models") / "captions")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (30, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


WORDS = ("predict", "caption")


@pytest.mark.parametrize(
    "given", [("photos/*.png",), ("photos",), ("photos/0.png", "photos/1.png", "photos/2.png")]
)
def test_pictures_of_a_pattern_a_folder_or_by_name(
    xvlm: Run, photos: Path, captioner: Path, given: tuple[str, ...]
) -> None:
    done = xvlm(*WORDS, *given, "-c", captioner, "--json")
    assert done.code == 0
    result = done.document()["result"]
    assert [row["image"] for row in result["pictures"]] == [f"photos/{i}.png" for i in range(3)]
    assert all(row["caption"] and row["log_probability"] < 0 for row in result["pictures"])
    assert (result["task"], result["search"], result["failed"]) == ("caption", "beam", [])
    assert [(row["width"], row["height"]) for row in result["pictures"]] == [(50, 30)] * 3
    table = xvlm(*WORDS, *given, "-c", captioner).out
    assert all(row["caption"] in table and row["image"] in table for row in result["pictures"])
    assert sorted(path.name for path in photos.iterdir()) == ["0.png", "1.png", "2.png"]


def test_an_unreadable_picture_is_named_and_the_rest_is_described(
    xvlm: Run, photos: Path, captioner: Path
) -> None:
    (photos / "1.png").write_bytes(b"no picture")
    done = xvlm(*WORDS, "photos", "-c", captioner, "--json")
    assert done.code == 4
    document = json.loads(done.out)
    assert [row["image"] for row in document["result"]["pictures"]] == [
        "photos/0.png",
        "photos/2.png",
    ]
    assert "photos/1.png" in document["error"]["what"]
    assert document["error"]["where"] == "2 of 3 pictures were described"
    (failed,) = document["result"]["failed"]
    assert "photos/1.png" in failed
    (photos / "0.png").write_bytes(b"")
    (photos / "2.png").write_bytes(b"")
    done = xvlm(*WORDS, "photos", "-c", captioner)
    said = done.refusal(4)
    assert all(f"photos/{i}.png" in said for i in range(3))


def test_searches_find_what_they_are_asked_for(xvlm: Run, photos: Path, captioner: Path) -> None:
    def captions(*words: str) -> list[list[str]]:
        done = xvlm(*WORDS, "photos", "-c", captioner, "--json", *words)
        return [
            [one["caption"] for one in [row, *row.get("others", [])]]
            for row in done.document()["result"]["pictures"]
        ]

    assert {len(row) for row in captions("--captions", "3")} == {3}
    # a search by beams has a word where the others end because there is no more room
    one_beam = captions("--beams", "1", "--min-length", "0")
    greedy = captions("--search", "greedy")
    assert all(row[0].startswith(other[0]) for row, other in zip(one_beam, greedy, strict=True))
    assert captions("--seed", "1") == captions("--search", "sample", "--seed", "1")
    assert captions("--seed", "1") != captions("--seed", "2")
    assert captions("--top-k", "1") == captions("--search", "greedy")
    assert captions("--temperature", "0.0001") == captions("--search", "greedy")
    longest = max(len(row[0].split()) for row in captions("--max-length", "8"))
    assert longest <= 4


def test_every_option_reaches_the_search() -> None:
    given = {
        "beams": 5, "captions": 4, "temperature": 0.7, "top_k": 11, "top_p": 0.8, "seed": 9,
        "max_length": 17, "min_length": 3,
    }  # fmt: skip
    assert _how(CaptionOptions(search="sample", **given)) == How(  # type: ignore[arg-type]
        "sample", 5, 4, Sampling(0.7, 11, 0.8), 9, 17, 3
    )
    assert _how(CaptionOptions()) == How(), "what is not said is what the library takes"


def test_json_lines_on_standard_input(
    xvlm: Run, photos: Path, captioner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "".join(json.dumps({"image": f"photos/{i}.png"}) + "\n" for i in (2, 0, 2))
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    rows = xvlm(*WORDS, "-", "-c", captioner, "--json").document()["result"]["pictures"]
    assert [row["image"] for row in rows] == ["photos/2.png", "photos/0.png"]
    monkeypatch.setattr("sys.stdin", io.StringIO('{"images": "photos/0.png"}\n'))
    assert "no image in the line" in xvlm(*WORDS, "-", "-c", captioner).refusal(4)


def test_dry_run_names_pictures_and_model(xvlm: Run, photos: Path, captioner: Path) -> None:
    done = xvlm(*WORDS, "photos", "-c", captioner, "--dry-run")
    assert done.code == 0
    assert done.out.count("would describe photos/") == 3


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "no picture was given"),
        (("a dog",), 2, "neither a picture nor a folder"),
        (("gone.png",), 4, "is not there"),
        (("none/*.png",), 4, "no file matches"),
        (("https://example.org/a.jpg",), 2, "is a URL"),
        (("photos", "--phrase", "dog"), 2, "without a phrase"),
        (("photos", "-o", "out"), 2, "writes no file"),
        (("photos", "--search", "best"), 2, "no search 'best'"),
        (("photos", "--search", "beam", "--top-p", "0.9"), 2, "--top-p is for --search sample"),
        (("photos", "--search", "sample", "--beams", "2"), 2, "--beams is for --search beam"),
        (("photos", "--captions", "4"), 2, "3 beams find no 4 captions"),
        (("photos", "--search", "greedy", "--captions", "2"), 2, "finds one caption"),
        (("photos", "--temperature", "0"), 2, "not a number of at least 1e-06"),
        (("photos", "--temperature", "1e-320"), 2, "not a number of at least 1e-06"),
        (("photos", "--beams", "9999999"), 2, "too many for the tokens"),
        (("photos", "--top-p", "1.5"), 2, "is not in (0, 1]"),
        (("photos", "--max-length", "4"), 2, "does not fit"),
        (("photos", "--max-length", "100"), 2, "does not fit"),
        (("photos", "--region"), 2, "--region is for retrieval"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    xvlm: Run, photos: Path, captioner: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    refused = xvlm(*WORDS, *words, "-c", captioner).refusal(code)
    assert said in refused
    assert "meant as" not in refused, "a caption asks for no phrase"


def test_options_of_captions_are_refused_elsewhere(xvlm: Run, photos: Path) -> None:
    done = xvlm("predict", "grounding", "photos/0.png", "a dog", "--beams", "2")
    assert "--beams is for caption, not for grounding" in done.refusal(2)
