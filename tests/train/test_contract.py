"""What every engine promises, of real training sessions: one suite, run on each.

Most promises compare two runs. The runs are made before the first test, by one group of processes
for each number of ranks (see contract_plan.py); the tests read what they left.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from tests.train.contract_jobs import PARTS, STEPS, Job, lines_of
from tests.train.contract_plan import (
    ALONE,
    ALONE_STEPS,
    BAD_STEP,
    ELASTIC_END,
    END,
    ENGINES,
    FLOAT16,
    MEANS,
    OVERFLOWS,
    STOP,
    ZERO,
    of,
)
from tests.train.contract_reference import contrastive_run, means_run
from tests.train.contract_runs import (
    BFLOAT16,
    FLOAT32,
    Runs,
    assert_same,
    curve,
    difference,
    make_runs,
)
from xvlm_core.errors import DataError, DivergedError
from xvlm_core.train import checkpoint, runs

# its runs take 3 minutes of two quiet cores, which is many of two busy ones
pytestmark = pytest.mark.timeout(1200)

HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
FIRST = 5
"""Steps in which rounding has not grown yet."""
LOSSES = {"contrastive", "matching", "masked_lm", "box_l1", "box_giou"}


def needs(engine: str) -> Any:
    """Marks of a test of an engine."""
    missing = not HAS_DEEPSPEED and engine != "torch"
    return pytest.mark.skipif(missing, reason="DeepSpeed is not installed")


def engines(*names: str) -> pytest.MarkDecorator:
    each = [pytest.param(name, marks=needs(name)) for name in names]
    return pytest.mark.parametrize("engine", each)


every_engine = engines(*ENGINES)
one_or_two = pytest.mark.parametrize("world", [1, 2])
in_float16 = pytest.mark.parametrize(
    ("world", "engine"),
    [pytest.param(world, engine, marks=needs(engine)) for world, engine in FLOAT16],
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folders = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("runs")
    return make_runs(*folders, ENGINES if HAS_DEEPSPEED else ENGINES[:1])


# ---------------------------------------------------------------- the same run on any ranks


@every_engine
def test_two_ranks_are_one_rank(made: Runs, engine: str) -> None:
    """Every loss, the temperature, the norm of the gradient and the learning rate of each step."""
    one, two = made.log(f"1/{engine} whole"), made.log(f"2/{engine} whole")
    assert len(one) == (STEPS if engine == "torch" else ELASTIC_END)
    assert {*LOSSES, "loss", "temperature", "grad_norm", "lr"} == set(curve(one[0]))
    assert difference(one, two) <= FLOAT32
    assert [line["counts"] for line in one] == [line["counts"] for line in two]
    assert made.seen(f"1/{engine} whole") == made.seen(f"2/{engine} whole")
    if engine == "torch":
        assert one == two
        assert_same(made.tensors("1/torch whole", STEPS), made.tensors("2/torch whole", STEPS))


def test_the_run_is_one_that_tells_something(made: Runs) -> None:
    """It learns, clips, drops out; its parts differ, and so do its steps."""
    log = made.log("1/torch whole")
    assert sum(line["loss"] for line in log[-5:]) < 0.95 * sum(line["loss"] for line in log[:5])
    assert max(line["grad_norm"] for line in log) > 1.0
    shape = Job("").recipe(made.root).model.shape()
    assert min(shape.text.dropout, shape.vision.drop_path, shape.vision.depths[0] - 1) > 0
    seen = made.seen("1/torch whole")
    assert len(seen) == PARTS * STEPS
    assert seen[0].records != seen[1].records != seen[2].records
    for rank, report in enumerate(made.told["2/torch whole"]):
        assert {one.part for one in report.seen} == {rank}


@every_engine
def test_two_ranks_are_one_rank_where_regions_are_updates_of_their_own(
    made: Runs, engine: str
) -> None:
    """The box head is idle in every second update or so."""
    one, two = made.log(f"1/{engine} extra"), made.log(f"2/{engine} extra")
    assert len(one) == END
    assert 0 < sum("box_l1" in line for line in one) < END
    assert difference(one, two) <= FLOAT32
    assert made.seen(f"1/{engine} extra") == made.seen(f"2/{engine} extra")


@engines(*ZERO)
@one_or_two
def test_a_stage_of_zero_is_plain_pytorch(made: Runs, engine: str, world: int) -> None:
    """Every parameter has a gradient in each of these updates: see DeepSpeedEngine."""
    plain = made.log("1/torch whole")[:ELASTIC_END]
    assert difference(plain, made.log(f"{world}/{engine} whole")) <= FLOAT32


@every_engine
@one_or_two
def test_the_contrastive_loss_and_its_gradient_are_those_of_one_graph(
    made: Runs, engine: str, world: int
) -> None:
    """So gathered features carry gradient: the own rows', and of a loss over the rows of all."""
    run = f"{world}/{engine} alone"
    expected = contrastive_run(made.root, Job("", of(engine, ALONE)), ALONE_STEPS)
    assert difference(expected, made.log(run)) <= FLOAT32


@engines("torch", "zero3")
def test_a_mean_and_its_gradient_are_those_over_the_items_of_all_parts(
    made: Runs, engine: str
) -> None:
    """Not the mean of the parts' means: they have different numbers of masked tokens and boxes."""
    expected = means_run(made.root, Job("", of(engine, MEANS)), ALONE_STEPS)
    assert difference(expected, made.log(f"2/{engine} means")) <= FLOAT32


@pytest.mark.parametrize(("world", "parts"), [(3, 3), (3, 6), (2, 6)])
def test_more_ranks_and_parts_are_one_rank(made: Runs, world: int, parts: int) -> None:
    """Over the first steps. Afterwards rounding may grow beyond any bound.

    The sum of three gradients depends on their order, by 1e-7 of the greatest. Where they cancel
    that is much of the sum, and AdamW divides by it: the weight's change then differs by up to the
    learning rate, in either direction, and a step later so do all gradients.
    """
    one, more = made.log(f"1/{parts} parts"), made.log(f"{world}/{parts} parts")
    assert len(one) == len(more) == END
    assert difference(one[:FIRST], more[:FIRST]) <= FLOAT32
    assert made.seen(f"1/{parts} parts") == made.seen(f"{world}/{parts} parts")
    for rank, report in enumerate(made.told[f"{world}/{parts} parts"]):
        own = parts // world
        assert {one.part for one in report.seen} == set(range(rank * own, (rank + 1) * own))


# ---------------------------------------------------------------- captions that are drawn


@engines("torch", "zero3")
def test_drawn_captions_and_their_rewards_are_those_of_one_rank(made: Runs, engine: str) -> None:
    """Although one rank decodes more steps than the other, and the weights are shared out."""
    run = "2/drawn" if engine == "torch" else f"2/drawn, {engine}"
    one, two = made.log("1/drawn"), made.log(run)
    assert {"self_critical", "reward", "baseline", "grad_norm"} < set(curve(one[0]))
    assert len({line["reward"] for line in one}) > 1
    assert one == two if engine == "torch" else difference(one, two) <= FLOAT32
    by_rank = [report.written for report in made.told[run]]
    assert by_rank[0] != by_rank[1]
    (alone,) = (report.written for report in made.told["1/drawn"])
    assert alone == [calls for step in zip(*by_rank, strict=True) for calls in step]


def test_captions_are_drawn_on_as_if_the_run_had_not_been_stopped(made: Runs) -> None:
    """Nor is the validation left out that the step of the signal was to be followed by."""
    whole, resumed = "2/drawn", "2/drawn, resumed"
    assert made.log(resumed) == made.log(whole)
    evals = [list(lines_of(made.base, run, "eval")) for run in (whole, resumed)]
    assert [line["step"] for line in evals[0]] == [STOP, 5]
    assert [line["scores"] for line in evals[0]] == [line["scores"] for line in evals[1]]
    assert_same(made.tensors(resumed, 5), made.tensors(whole, 5))


# ---------------------------------------------------------------- bfloat16


@pytest.mark.parametrize(
    ("one", "more"),
    [
        *(pytest.param(f"1/{e} bf16", f"2/{e} bf16", marks=needs(e), id=e)
          for e in ENGINES),
        pytest.param("1/3 parts, bf16", "3/bf16", id="torch, 3 ranks"),
    ],
)  # fmt: skip
def test_in_bfloat16_more_ranks_are_one_rank(made: Runs, one: str, more: str) -> None:
    """And it is the forward pass alone that is of lower precision."""
    assert len(made.log(one)) == END
    steps = FIRST if more.startswith("3") else END  # see test_more_ranks_and_parts_are_one_rank
    assert difference(made.log(one)[:steps], made.log(more)[:steps]) <= BFLOAT16
    for report in (*made.told[one], *made.told[more]):
        assert report.dtypes == {"torch.float32"}
    tensors = made.tensors(more, END).values()
    assert {v.dtype for v in tensors if v.is_floating_point()} == {torch.float32}
    float32 = "1/3 parts" if one == "1/3 parts, bf16" else one.replace("bf16", "whole")
    assert difference(made.log(float32)[:END], made.log(one)) > 1e-4


# ---------------------------------------------------------------- to go on


@pytest.mark.parametrize(
    ("stopped", "resumed", "whole"),
    [
        *(pytest.param(f"{w}/{e} stopped", f"{w}/{e} resumed", f"{w}/{e} whole",
                       marks=needs(e), id=f"{e}-{w}")
          for e in ENGINES for w in (1, 2)),
        pytest.param("3/stopped", "3/resumed", "3/3 parts", id="torch-3"),
        pytest.param("1/ema stopped", "1/ema resumed", "1/ema", id="average-1"),
        pytest.param("2/ema stopped", "2/ema resumed", "2/ema", id="average-2"),
    ],
)  # fmt: skip
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    made: Runs, stopped: str, resumed: str, whole: str
) -> None:
    """A signal to the last rank stops all; the log and the weights are the same to the bit."""
    for report in made.told[stopped]:
        assert report.result is not None
        assert (report.result.step, report.result.interrupted_by) == (STOP, 15)
        assert {one.step for one in report.seen} == set(range(1, STOP + 1))
    for report in made.told[resumed]:
        assert {one.step for one in report.seen} == set(range(STOP + 1, END + 1))
    assert runs.read(made.base / stopped).status == "interrupted"
    assert made.log(resumed) == made.log(whole)[:END]
    assert_same(made.tensors(resumed, END), made.tensors(whole, END))


@pytest.mark.parametrize(
    "sessions",
    [
        ("2/torch stopped", "1/elastic"),
        ("1/torch stopped", "2/elastic"),
        pytest.param(
            ("2/torch stopped", "1/to zero2", "2/to zero3"),
            marks=needs("zero3"),
        ),
    ],
    ids=["2 ranks, then 1", "1 rank, then 2", "torch on 2, ZeRO 2 on 1, ZeRO 3 on 2"],
)
def test_a_run_goes_on_with_other_ranks_engines_and_stages(
    made: Runs, sessions: Sequence[str]
) -> None:
    """The same records in every step, and the same curve."""
    whole = "1/torch whole"
    assert difference(made.log(whole)[:ELASTIC_END], made.log(sessions[-1])) <= FLOAT32
    expected = [one for one in made.seen(whole) if one.step <= ELASTIC_END]
    assert [one for run in sessions for one in made.seen(run)] == expected


# ---------------------------------------------------------------- what goes wrong


def assert_all_stopped_before_the_update(made: Runs, run: str, step: int) -> DivergedError:
    """On every rank the same error, and the weights before the update; one rank wrote of it."""
    reports = made.told[run]
    errors = [report.error for report in reports]
    assert all(isinstance(error, DivergedError) for error in errors)
    assert len({tuple(error.lines()) for error in errors if error is not None}) == 1
    assert all(report.unchanged for report in reports)
    assert [report.wrote for report in reports] == [1] + [0] * (len(reports) - 1)
    assert runs.read(made.base / run).status == "diverged"
    assert [line["step"] for line in made.log(run)] == list(range(1, step))
    assert all(number < step for number in made.checkpoints(run))
    found = errors[0]
    assert isinstance(found, DivergedError)
    assert found.exit_code == 6
    return found


def records_of(made: Runs, run: str, step: int, parts: Sequence[int]) -> list[str]:
    seen = [one for one in made.seen(run) if one.step == step and one.part in parts]
    return [record for one in seen for record in one.records]


def diverged_report(made: Runs, run: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((made.base / run / "diverged.json").read_bytes())
    return content


@pytest.mark.parametrize(
    ("run", "part", "step"),
    [
        pytest.param("1/torch bad pictures", 1, BAD_STEP, id="torch-1"),
        *(pytest.param(f"2/{e} bad pictures", 1, BAD_STEP,
                       marks=needs(e), id=f"{e}-2") for e in ENGINES),
        pytest.param("3/bad pictures", 1, BAD_STEP, id="torch-3"),
        pytest.param("2/6 parts, bad pictures", 4, 1, id="torch-2, 6 parts"),
    ],
)  # fmt: skip
def test_a_loss_that_is_not_finite_in_one_part_stops_all_and_names_its_records(
    made: Runs, run: str, part: int, step: int
) -> None:
    """Those of the guilty part alone, although the contrastive loss is not finite in all."""
    error = assert_all_stopped_before_the_update(made, run, step)
    report = diverged_report(made, run)
    assert report["records"] == records_of(made, run, step, [part])
    assert set(report["records"]) != set(records_of(made, run, step, range(6)))
    assert report["step"] == step
    assert report["values"]["contrastive"] == "nan"
    assert f"step {step}" in error.what
    assert report["records"][0] in error.details[0]
    if step > 2:
        assert made.checkpoints(run) == [2]
        assert "step-00000002" in str(error.try_)


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(f"{w}/{e} bad gradient", marks=needs(e), id=f"{e}-{w}")
        for e, w in (("torch", 1), *((e, 2) for e in ENGINES))
    ],
)
def test_a_gradient_that_is_not_finite_in_one_part_stops_all(made: Runs, run: str) -> None:
    """Which part it comes from nothing tells: all are named."""
    error = assert_all_stopped_before_the_update(made, run, BAD_STEP)
    assert "grad_norm" in error.what
    report = diverged_report(made, run)
    assert report["records"] == records_of(made, run, BAD_STEP, range(PARTS))
    assert all(isinstance(report["values"][name], float) for name in LOSSES)
    assert made.checkpoints(run) == [2]


@pytest.mark.parametrize(
    ("run", "what", "where"),
    [
        ("2/bad data of rank 1", "part 1 cannot be read", "rank 1 of 2"),
        ("2/bad data", "part 0 cannot be read", None),
    ],
)
def test_an_error_of_one_rank_is_that_of_all_and_rank_0_comes_first(
    made: Runs, run: str, what: str, where: str | None
) -> None:
    for report in made.told[run]:
        assert isinstance(report.error, DataError)
        assert (report.error.what, report.error.where) == (what, where)
        assert report.error.raised_on_all
        assert max(one.step for one in report.seen) == BAD_STEP - 1
    assert runs.read(made.base / run).status == "interrupted"


@in_float16
def test_a_float16_overflow_backs_off_is_counted_and_training_goes_on(
    made: Runs, engine: str, world: int
) -> None:
    run = f"{world}/{engine} overflow"
    log = made.log(run)
    assert [line["step"] for line in log] == list(range(1, END + 1))
    scale, count = 2.0**16, 0
    for line in log:
        assert line["loss_scale"] == scale
        overflowed = line["counts"].get("overflows", 0)
        assert overflowed or line["step"] not in OVERFLOWS
        assert ("loss" in line) == ("grad_norm" in line) == (not overflowed)
        scale, count = scale / 2**overflowed, count + overflowed
        assert line.get("overflows", 0) == count
    assert "loss" in log[-1]
    for report in made.told[run]:
        assert report.result is not None
        assert report.result.overflows == count >= len(OVERFLOWS)
        assert report.unchanged
        assert report.dtypes == {"torch.float32"}
    state = made.base / run / "checkpoints" / checkpoint.folder_name(END) / "state.json"
    content = json.loads(state.read_bytes())
    assert (content["scaler"]["scale"], content["overflows"]) == (scale, count)


@in_float16
def test_at_scale_1_an_overflow_is_divergence(made: Runs, engine: str, world: int) -> None:
    run = f"{world}/{engine} at scale 1"
    error = assert_all_stopped_before_the_update(made, run, 17)  # 65,536 is 2 to the 16th
    assert "grad_norm" in error.what
    assert [line["loss_scale"] for line in made.log(run)] == [2.0**n for n in range(16, 0, -1)]


# ---------------------------------------------------------------- average, scores, memory


def test_the_saved_model_is_the_average_and_two_ranks_are_one(made: Runs) -> None:
    found = [made.tensors("1/ema", step) for step in range(1, END + 1)]
    names = [name.removeprefix("live/") for name in found[0] if name.startswith("live/")]
    learnt = {name for name in names if f"exp_avg/{name}" in found[0]}
    assert len(learnt) > 20
    for n, (before, after) in enumerate(itertools.pairwise(found), start=1):
        decay = min(0.6, (1 + n) / (10 + n))
        for name in names:
            live, saved = after[f"live/{name}"], after[f"model: {name}"]
            if name not in learnt:  # running statistics, places
                assert torch.equal(saved, live), name
                continue
            last = before[f"model: {name}"]
            expected = decay * last.double() + (1 - decay) * live.double()
            torch.testing.assert_close(saved.double(), expected, rtol=1e-5, atol=1e-8)
            assert not torch.equal(saved, live), name
    assert made.log("1/ema") == made.log("2/ema")
    assert_same(found[-1], made.tensors("2/ema", END))
    # training itself knows nothing of it
    assert made.log("1/ema") == made.log("1/torch whole")[:END]


def numbers_of(answer: Any) -> list[float]:
    """All numbers in it, in order."""
    if isinstance(answer, Mapping):
        answer = list(answer.values())
    if isinstance(answer, list | tuple):
        return [number for value in answer for number in numbers_of(value)]
    return [float(answer)] if isinstance(answer, float | int) else []


@engines("torch", "zero3")
def test_the_scores_of_two_ranks_are_those_of_one_and_every_item_is_asked_once(
    made: Runs, engine: str
) -> None:
    one, two = made.told[f"1/{engine} scored"], made.told[f"2/{engine} scored"]
    by_id = [{p["id"]: p for p in reports[0].predictions} for reports in (one, two)]
    assert len(by_id[0]) == len(one[0].predictions) == len(two[0].predictions) == 15
    assert by_id[0].keys() == by_id[1].keys()
    assert two[1].predictions == []  # rank 0 scores
    for name, answer in by_id[0].items():
        assert numbers_of(answer) == pytest.approx(numbers_of(by_id[1][name]), rel=1e-4, abs=1e-6)
    scores = [report.result.scores for report in (*one, *two) if report.result is not None]
    assert len(scores) == 3
    for found in scores:
        assert found.keys() == scores[0].keys()
        assert found
        for name, score in found.items():
            assert score.n == scores[0][name].n
            assert score.value == pytest.approx(scores[0][name].value, rel=1e-6)
    evals = [list(lines_of(made.base, f"{world}/{engine} scored", "eval")) for world in (1, 2)]
    assert [[line["step"] for line in lines] for lines in evals] == [[1, 2]] * 2


@engines("torch", "zero3")
def test_to_compute_activations_again_changes_nothing(made: Runs, engine: str) -> None:
    log = made.log(f"2/{engine} recomputed")
    assert difference(made.log(f"2/{engine} whole")[:END], log) <= FLOAT32
    if engine == "torch":
        assert log == made.log("1/torch whole")[:END]
