from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from xvlm_core.data.ledger import is_damage
from xvlm_core.data.store import Store
from xvlm_core.sources.registry import SOURCES

REPOSITORY = Path(__file__).resolve().parents[2]

FEW = ("--train", "4", "--val", "2", "--workers", "1")
SMALL = ("--train", "4", "--val", "2", "--test", "0", "--unseen", "0", "--workers", "1")


@pytest.fixture
def lines(picture: Path) -> Path:
    """Three usable lines, and two that are dropped."""
    rows = [
        {"image": "image.jpg", "text": "a dog", "box": [1, 2, 30, 30]},
        {"image": "image.jpg", "text": "outside", "box": [1, 2, 300, 400]},
        {"image": "gone.jpg", "text": "a cat"},
        {"image": "image.jpg", "text": "noise all over"},
    ]
    file = picture.parent / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_help_lists_every_source_and_its_options(xvlm: Run) -> None:
    text = xvlm("prepare-data", "--help").out
    assert all(name in text for name in SOURCES)
    for name, source in SOURCES.items():
        text = xvlm("prepare-data", name, "--help").out
        assert all(option.flag in text for option in source.options)


def test_your_own_pictures_with_a_balance_sheet(xvlm: Run, lines: Path) -> None:
    done = xvlm("prepare-data", "jsonl", lines, "--images", ".", "-o", "data/mine")
    assert "read" in done.out
    assert "dropped" in done.out
    assert "ledger.jsonl" in done.out
    store = Store.open(Path("data/mine"))
    for count in store.manifest.counts.values():
        assert count["read"] == count["kept"] + sum(count["dropped"].values())
    assert store.manifest.counts["region"]["kept"] == 1
    assert sum(store.manifest.counts["region"]["dropped"].values()) == 1


def test_damage_ends_with_exit_code_4_and_a_list_unless_it_is_allowed(
    xvlm: Run, lines: Path
) -> None:
    words = ("prepare-data", "jsonl", lines, "--images", ".")
    done = xvlm(*words, "-o", "a")
    assert done.code == 4
    assert "a is prepared, without what is damaged or missing: " in done.err
    assert "--allow-damage" in done.err
    assert len(Store.open(Path("a"))) == 1, "what was good is kept"
    ledger = [json.loads(line) for line in Path("a/ledger.jsonl").read_text().splitlines()]
    damaged = [line for line in ledger if is_damage(line["reason"])]
    assert 0 < len(damaged) < len(ledger)
    for dropped in damaged:
        assert f"{dropped['item']} {dropped['id']}: {dropped['reason']}" in done.err
    assert xvlm(*words, "-o", "b", "--allow-damage", "0.5").code == 0
    assert xvlm(*words, "-o", "c", "--allow-damage", "0.1").code == 4


@pytest.mark.parametrize(
    ("box", "advice"),
    [
        ([0.1, 0.2, 0.5, 0.9], "--box-unit fraction"),
        ([100, 80, 40, 30], "--box-format xywh"),
    ],
)
def test_boxes_that_were_read_in_another_form_are_noticed(
    xvlm: Run, lines: Path, box: list[float], advice: str
) -> None:
    rows = [{"image": "image.jpg", "text": f"thing {i}", "box": box} for i in range(6)]
    whole = [*rows, {"image": "image.jpg", "text": "noise", "box": [10, 10, 50, 50]}]
    for name, found in (("all", rows), ("most", whole)):
        file = lines.with_name(f"{name}.jsonl")
        file.write_text("".join(json.dumps(row) + "\n" for row in found))
        done = xvlm("prepare-data", "jsonl", file, "--images", ".", "-o", name)
        assert done.code == 4, name
        assert f"Try: {advice}" in done.err, name
        assert "thing" in done.err or f"{name}.jsonl:1" in done.err, "an example"


def test_the_share_that_is_said_is_the_share_that_will_do(xvlm: Run, lines: Path) -> None:
    rows = [{"image": f"gone{i}.jpg", "text": "a"} for i in range(3)]
    with open(lines, "a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    words = ("prepare-data", "jsonl", lines, "--images", ".", "-o", "a", "--overwrite")
    done = xvlm(*words)
    share = done.err.split("--allow-damage ")[1].split()[0]
    assert xvlm(*words, "--allow-damage", share).code == 0


def test_columns_that_were_taken_and_left_are_said(xvlm: Run, lines: Path) -> None:
    Path("mine.csv").write_text("file;phrase;note\nimage.jpg;noise;x\n")
    done = xvlm("prepare-data", "table", "mine.csv", "--images", ".", "-o", "a")
    assert done.code == 0
    assert "mine.csv: image=file text=phrase" in done.out
    assert "not used: note" in done.out
    assert xvlm(
        "prepare-data", "table", "mine.csv", "--images", ".", "-o", "b", "--json"
    ).document()["result"]["columns"]["mine.csv"]["not_used"] == ["note"]


def test_names_from_a_file_do_not_command_the_terminal(xvlm: Run, lines: Path) -> None:
    row = {"image": "image.jpg", "text": "a", "split": "\u001b[31mtr\u202eain"}
    lines.write_text(json.dumps(row) + "\n")
    done = xvlm("prepare-data", "jsonl", lines, "--images", ".", "-o", "a")
    assert done.code == 0
    assert "tr" in done.out
    assert not {"\x1b", "\u202e"} & set(done.out + done.err)


def test_samples_are_drawn_beside_the_store(xvlm: Run, lines: Path) -> None:
    words = ("prepare-data", "jsonl", lines, "--images", ".", "--allow-damage", "1")
    done = xvlm(*words, "-o", "data/mine", "--sample", "2")
    assert done.code == 0
    assert "data/mine-samples.png" in done.out
    assert Path("data/mine-samples.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/jpeg" in Path("data/mine-samples.html").read_text()
    document = xvlm(*words, "-o", "data/json", "--sample", "1", "--json").document()["result"]
    assert document["card"]["records"] == 1
    assert document["samples"]["png"] == "data/json-samples.png"
    Store.open(Path("data/mine")).verify()


def test_what_changes_no_byte_is_no_part_of_the_command_that_a_store_remembers(
    xvlm: Run, lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("prepare-data", "jsonl", str(lines), "--images", ".", "-o", "a")
    more = ("--workers", "2", "--allow-damage=0.5", "--json", "--engine", "local")
    monkeypatch.setattr(sys, "argv", ["xvlm", *words, *more])
    xvlm(*words, *more)
    assert Store.open(Path("a")).manifest.command == shlex.join(["xvlm", *words])


def test_json_has_the_same_counts(xvlm: Run, lines: Path) -> None:
    words = ("prepare-data", "jsonl", lines, "--images", ".", "-o", "data/mine", "--json")
    result = xvlm(*words).document()["result"]
    assert result["counts"] == Store.open(Path("data/mine")).manifest.counts


def test_the_word_and_the_flag_mean_the_same(xvlm: Run, lines: Path) -> None:
    xvlm("prepare-data", "jsonl", lines, "--images", ".", "-o", "a")
    xvlm("prepare-data", "jsonl", "--annotations", lines, "--images", ".", "-o", "b")
    a, b = Store.open(Path("a")).manifest, Store.open(Path("b")).manifest
    assert a.fingerprint == b.fingerprint
    both = ("prepare-data", "jsonl", lines, "--annotations", lines, "--images", ".", "-o", "c")
    assert "twice" in xvlm(*both).refusal(2)


def test_a_store_that_is_there_is_refused_and_replaced_when_asked(xvlm: Run) -> None:
    words = ("prepare-data", "world", *SMALL, "-o", "data/world")
    assert xvlm(*words).code == 0
    assert "--overwrite" in xvlm(*words).refusal(2)
    assert xvlm(*words, "--overwrite", "--seed", "9").code == 0


def test_dry_run_writes_nothing(xvlm: Run, tmp_path: Path) -> None:
    done = xvlm("prepare-data", "world", *SMALL, "-o", "data/world", "--dry-run")
    assert done.code == 0
    assert "would prepare world" in done.out
    assert list(tmp_path.iterdir()) == []


def test_a_stand_in_fills_the_stores_that_a_recipe_names(xvlm: Run, tmp_path: Path) -> None:
    words = ("prepare-data", "world", "--as", "finetune/refcoco+", "-o", "data", *FEW)
    document = xvlm(*words, "--json").document()
    assert [row["store"] for row in document["result"]["stores"]] == ["data/refcoco+"]
    assert "synthetic" in document["warnings"][0]
    assert Store.open(tmp_path / "data" / "refcoco+").manifest.splits == {"train": 4, "val": 2}
    assert "already" in xvlm(*words).refusal(2)


def test_a_stand_in_leaves_real_data_alone_and_differs_from_store_to_store(
    xvlm: Run, tmp_path: Path
) -> None:
    assert xvlm("prepare-data", "world", "-o", "data/coco", *SMALL, "--seed", "99").code == 0
    real = Store.open(tmp_path / "data" / "coco").manifest
    words = ("prepare-data", "world", "--as", "pretrain/4m", "-o", "data", *FEW)
    done = xvlm(*words, "--json")
    result = done.document()["result"]
    assert result["left"] == ["coco"]
    assert "left as it is" in done.err
    assert Store.open(tmp_path / "data" / "coco").manifest == real
    prints = [row["fingerprint"] for row in result["stores"]]
    assert len(set(prints)) == len(prints) == 3
    vg, sbu = (Store.open(tmp_path / "data" / name) for name in ("vg", "sbu"))
    assert vg.manifest.source == "world (stand-in for vg)"
    assert any(vg[i].regions for i in range(len(vg)))
    # what the recipe reads for its captions alone has captions alone
    assert not any(sbu[i].regions or sbu[i].absent for i in range(len(sbu)))
    again = xvlm("prepare-data", "world", "--as", "pretrain/4m", "-o", "again", *FEW)
    assert again.code == 0
    assert Store.open(tmp_path / "again" / "vg").manifest.fingerprint == vg.manifest.fingerprint


def test_a_stand_in_has_the_splits_of_its_recipe_and_no_others(xvlm: Run) -> None:
    words = ("prepare-data", "world", "--as", "pretrain/4m", "-o", "data", *FEW, "--unseen", "3")
    assert "--unseen" in xvlm(*words).refusal(2)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("cocoo", "-o", "x"), 2),
        (("world",), 2),
        (("world", "-o", "x", "--train", "-3"), 2),
        (("world", "-o", "x", "--train", "some"), 2),
        (("jsonl", "-o", "x"), 2),
        (("jsonl", "gone.jsonl", "--images", ".", "-o", "x"), 4),
        (("coco", "gone", "-o", "x"), 4),
        (("world", "--as", "pretrain/17m", "-o", "x"), 3),
    ],
)
def test_what_is_refused(words: tuple[str, ...], code: int, xvlm: Run, tmp_path: Path) -> None:
    xvlm("prepare-data", *words).refusal(code)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_keep_is_an_error_with_the_reasons(xvlm: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"image": "gone.jpg", "text": "a dog"}\n')
    error = xvlm("prepare-data", "jsonl", "mine.jsonl", "--images", ".", "-o", "x").refusal(4)
    assert "missing" in error
    assert not (tmp_path / "x").exists()


@pytest.fixture
def drawing(clean: None, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """``prepare-data world`` in a process of its own, while its two workers draw."""
    words = ("prepare-data", "world", "--train", "20000", "--workers", "2", "--json")
    process = subprocess.Popen(
        [sys.executable, "-m", "xvlm_cli.app", *words, "-o", tmp_path / "data" / "world"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        # a background job starts with SIGINT ignored, and its children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 60
    while not (tmp_path / "data" / ".world.partial" / "parts" / "shards.jsonl").is_file():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_but_what_the_same_command_continues(
    number: int, code: int, drawing: subprocess.Popen[str], tmp_path: Path
) -> None:
    drawing.send_signal(number)
    out, err = drawing.communicate(timeout=60)  # the workers hold the pipes until they end
    assert drawing.returncode == code, err
    assert "Traceback" not in err
    assert json.loads(out)["error"]["exit_code"] == code
    assert "the same command continues there" in err
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".world.partial"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_the_workers_of_a_killed_process_end(drawing: subprocess.Popen[str]) -> None:
    drawing.kill()
    drawing.communicate(timeout=20)  # the workers hold the pipes until they end
    assert drawing.returncode == -signal.SIGKILL
