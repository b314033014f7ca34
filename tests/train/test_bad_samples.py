"""A few damaged training samples are passed over and told; more than ``data.max_bad`` end the run.

Thirty records, five a step: six steps are a pass.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tasks.recipes import recipe, write_stores
from tests.train.toy import ToyBatch
from xvlm_cli.app import main
from xvlm_core.data.dropped import BadSample, BadSamples
from xvlm_core.errors import DataError
from xvlm_core.train.bad_samples import BadSampleLimit, Seen

# ---------------------------------------------------------------------- the rule


def step_of(n: int, bad: int = 0, first: int = 0, other: int = 0) -> list[ToyBatch]:
    """A step of ``n`` samples, of which ``bad`` are damaged and ``other`` have no caption."""
    examples = (
        BadSample("coco", "data/coco", str(i), "missing", f"{i}.jpg")
        for i in range(first, first + bad)
    )
    ids = tuple(map(str, range(n - bad - other)))
    dropped = {"missing": bad, "no caption": other}
    return [ToyBatch(torch.zeros(len(ids), 1), ids, dropped=dropped, bad=BadSamples.of(examples))]


def stopped_at(limit: BadSampleLimit, steps: Sequence[list[ToyBatch]]) -> int | None:
    """Number of the step that ends the run, from 1."""
    for number, step in enumerate(steps, 1):
        try:
            limit.check([Seen.of(batch) for batch in step])
        except DataError:
            return number
    return None


def limit(max_bad: float, steps_per_epoch: int = 10**9) -> BadSampleLimit:
    return BadSampleLimit(max_bad, steps_per_epoch, "xvlm pretrain --resume -o runs/r")


def test_a_bad_start_ends_nothing_before_a_thousand_samples() -> None:
    bad_start = [step_of(100, bad=11)] + [step_of(100)] * 8
    assert stopped_at(limit(0.01), [*bad_start, step_of(100)]) == 10
    assert stopped_at(limit(0.01), [*bad_start, step_of(300)]) is None, "11 of 1,200"


def test_exactly_the_share_is_borne_and_one_more_is_not() -> None:
    assert stopped_at(limit(0.01), [step_of(1000, bad=10)]) is None
    assert stopped_at(limit(0.01), [step_of(1000, bad=11)]) == 1


def test_a_pass_that_is_shorter_than_a_thousand_samples_is_judged_when_it_is_over() -> None:
    assert stopped_at(limit(0.01, 4), [step_of(10, bad=3)] + [step_of(10)] * 3) == 4


def test_two_records_end_no_run_however_often_they_come() -> None:
    twice = [step_of(10, bad=2)]
    assert stopped_at(limit(0.01, 1), twice * 300) is None
    assert stopped_at(limit(0.01, 1), [*twice * 300, step_of(10, bad=1, first=2)]) == 301


def test_between_two_judgements_a_small_store_may_show_any_share() -> None:
    pass_ = [step_of(10, bad=4), *[step_of(10)] * 3]
    assert stopped_at(limit(0.1, 4), pass_ * 100) is None, "4 of 40, but 8 of 50 a step later"


def test_samples_left_out_for_what_they_are_do_not_count_as_damaged() -> None:
    assert stopped_at(limit(0.0, 1), [step_of(100, other=90)] * 20) is None
    # but they were seen
    assert stopped_at(limit(0.1, 1), [step_of(100, other=50, bad=10)] * 20) is None


def test_data_that_goes_bad_late_ends_the_run_soon() -> None:
    good = [step_of(1000)] * 1000
    late = [step_of(1000, bad=50, first=50 * i) for i in range(10)]
    assert stopped_at(limit(0.01), good + late) == 1003, "150 of the last 10,000"


def test_what_is_long_past_is_forgotten() -> None:
    good = [step_of(1000)]
    first, second = [step_of(1000, bad=60)], [step_of(1000, bad=45, first=60)]
    assert stopped_at(limit(0.01), good * 10 + first + good * 8 + second) == 20
    assert stopped_at(limit(0.01), good * 10 + first + good * 9 + second) is None


def test_both_updates_of_a_step_count() -> None:
    two = [*step_of(500, bad=6), *step_of(500, bad=6, first=6)]
    assert stopped_at(limit(0.01), [two]) == 1


def test_zero_bears_nothing_and_one_bears_everything() -> None:
    assert stopped_at(limit(0.0), [step_of(5), step_of(5, bad=1)]) == 2
    assert stopped_at(limit(1.0, 1), [step_of(5, bad=5, first=5 * i) for i in range(500)]) is None


def test_the_error_counts_names_ten_and_says_what_to_type() -> None:
    step = [*step_of(1000, bad=30), *step_of(1000, bad=30, first=30)]
    with pytest.raises(DataError) as caught:
        limit(0.025).check([Seen.of(batch) for batch in step])
    lines = caught.value.lines()
    assert caught.value.exit_code == 4
    assert lines[0] == (
        "60 of the last 2,000 training samples could not be read (more than data.max_bad = 2.5 %)"
    )
    assert lines[1:3] == ["  coco 0: missing (0.jpg)", "  coco 1: missing (1.jpg)"]
    assert lines[11:] == [
        "  and more",
        "Where: data/coco",
        "Try: xvlm validate data/coco; to go on nevertheless: "
        "xvlm pretrain --resume -o runs/r data.max_bad=1",
    ]


def test_a_record_that_is_bad_in_every_pass_is_named_once() -> None:
    limit_after_three = limit(0.1, 3)
    for step in (step_of(4, bad=4), step_of(4, bad=4)):
        limit_after_three.check([Seen.of(batch) for batch in step])
    with pytest.raises(DataError, match="12 of the last 12 ") as caught:
        limit_after_three.check([Seen.of(batch) for batch in step_of(4, bad=4)])
    assert caught.value.details == tuple(f"coco {i}: missing ({i}.jpg)" for i in range(4))


# ---------------------------------------------------------------------- whole runs


@dataclass(frozen=True)
class Ended:
    code: int
    document: dict[str, Any]

    @property
    def step(self) -> int:
        """Of the newest checkpoint."""
        folders = sorted(Path("run/checkpoints").iterdir())
        return int(folders[-1].name.removeprefix("step-"))


class Trainer:
    """Thirty records; pictures to break; the command line."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.capsys = root, capsys
        write_stores(root, train=30, val=1)
        changes: dict[str, Any] = {
            "data": {"regions": None, "images": {"batch_size": 5}},
            "schedule": {"max_steps": 12},
            "train": {"device": "cpu", "checkpoint_every": 4},
        }
        settings = recipe(root, **changes).model_dump(mode="json", exclude_unset=True)
        (root / "small.yaml").write_text(json.dumps(settings))

    def break_pictures(self, n: int) -> list[str]:
        """Damage some; how each is to be named."""
        names = [f"train-{i}" for i in range(2, 2 + n)]
        for name in names:
            picture = self.root / "pictures" / f"{name}.png"
            picture.write_bytes(picture.read_bytes()[:60])
        return [f"captions {name}: truncated image ({name}.png)" for name in names]

    def run(self, *words: str) -> Ended:
        self.capsys.readouterr()
        code = main(["pretrain", *words, "--json"])
        return Ended(code, json.loads(self.capsys.readouterr().out))

    def start(self, *words: str, workers: int = 0) -> Ended:
        return self.run(
            "--recipe",
            str(self.root / "small.yaml"),
            f"data.workers={workers}",
            "-o",
            "run",
            *words,
        )


@pytest.fixture
def trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Trainer:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return Trainer(tmp_path, capsys)


@pytest.mark.parametrize("workers", [0, 2])
def test_below_the_bound_the_run_ends_well_and_tells_the_count(
    trainer: Trainer, workers: int
) -> None:
    trainer.break_pictures(4)
    ended = trainer.start("data.max_bad=0.14", workers=workers)
    assert ended.code == 0
    assert ended.document["result"]["step"] == 12
    assert ended.document["result"]["dropped"] == {"truncated image": 2 * 4}, "two passes"
    assert ended.document["warnings"] == ["8 samples were left out of training: 8 truncated image"]


@pytest.mark.parametrize("workers", [0, 2])
def test_above_the_bound_the_run_ends_with_the_list_and_can_be_gone_on_with(
    trainer: Trainer, workers: int
) -> None:
    broken = trainer.break_pictures(4)
    ended = trainer.start(workers=workers)
    assert ended.code == 4
    error = ended.document["error"]
    assert error["what"] == (
        "4 of the last 30 training samples could not be read (more than data.max_bad = 1 %)"
    )
    assert sorted(error["details"]) == broken
    assert error["where"] == str(trainer.root / "captions")
    assert error["try"].startswith(f"xvlm validate {trainer.root / 'captions'}; ")
    assert json.loads(Path("run/run.json").read_text())["status"] == "interrupted"
    assert ended.step == 4, "the last checkpoint before the sixth step"

    typed = error["try"].partition("to go on nevertheless: xvlm pretrain ")[2]
    again = trainer.run(*typed.split())
    assert again.code == 0
    assert again.document["result"]["step"] == again.step == 12
    # steps 5 to 12, after the samples of the first four
    assert again.document["result"]["dropped"] == {"truncated image": 8}


def test_a_resumed_run_counts_anew(trainer: Trainer) -> None:
    trainer.break_pictures(4)
    assert trainer.start().code == 4
    again = trainer.run("--resume", "-o", "run")
    assert again.document["error"]["what"].startswith("4 of the last 30 training samples")
    assert again.code == 4
    assert again.step == 8, "a pass after step 4 is over at step 10"


def test_two_bad_pictures_of_thirty_end_no_run(trainer: Trainer) -> None:
    trainer.break_pictures(2)
    ended = trainer.start()
    assert ended.code == 0
    assert ended.document["result"]["dropped"] == {"truncated image": 2 * 2}


def test_with_zero_the_first_bad_picture_ends_the_run(trainer: Trainer) -> None:
    broken = trainer.break_pictures(1)
    ended = trainer.start("data.max_bad=0")
    assert ended.code == 4
    assert ended.document["error"]["details"] == broken


def test_with_one_a_run_goes_on_as_long_as_there_is_a_sample(trainer: Trainer) -> None:
    trainer.break_pictures(27)
    ended = trainer.start("data.max_bad=1")
    assert ended.code == 0
    assert ended.document["result"]["step"] == 12


@pytest.mark.parametrize("value", ["-0.1", "1.1"])
def test_the_bound_is_a_share(trainer: Trainer, value: str) -> None:
    ended = trainer.start(f"data.max_bad={value}")
    assert ended.code == 3
    assert any("data.max_bad" in line for line in ended.document["error"]["details"]) or (
        "data.max_bad" in ended.document["error"]["what"]
    )
