"""A run on two machines: it trains, notices within seconds that one is lost, and goes on."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults.two_nodes import (
    HOSTS,
    PORT,
    WITHIN,
    Nodes,
    Session,
    by_torchrun,
    by_xvlm,
    final_weights,
    last_step,
    missing,
    pretrain,
    write_recipe,
)
from xvlm_core.train.runs import read

Command = Callable[[int, Sequence[str]], list[str]]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    if reason := missing():
        pytest.skip(f"no two nodes here: {reason}")
    with Nodes() as made:
        yield made


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def alone(nodes: Nodes, recipe: Path) -> dict[str, bytes]:
    """What one process on one machine comes to."""
    from xvlm_cli.app import main

    run = recipe.parent / "alone"
    assert main([*pretrain(recipe, run)[2:], "--quiet"]) == 0
    return final_weights(run)


def start(nodes: Nodes, command: Command, recipe: Path, run: Path) -> Session:
    commands = [command(node, pretrain(recipe, run)) for node in (0, 1)]
    return Session(nodes, commands, run.parent)


def whole(nodes: Nodes, command: Command, recipe: Path, run: Path) -> dict[str, bytes]:
    """What the run comes to that is started, or goes on, on two nodes."""
    ends = start(nodes, command, recipe, run).end(120)
    assert [end.code for end in ends] == [0, 0], ends
    assert read(run).status == "finished"
    assert ends[1].text.count("step ") == 0, "node 0 speaks"
    return final_weights(run)


def lose(
    nodes: Nodes, command: Command, recipe: Path, run: Path, how: Callable[[], object]
) -> list[tuple[int, str]]:
    """Start it, lose a node in the middle, and wait for the end: exit codes and texts."""
    session = start(nodes, command, recipe, run)
    session.wait_for_step(run, 7)
    how()
    since = time.monotonic()
    ends = session.end(WITHIN)
    assert time.monotonic() - since < WITHIN
    assert last_step(run) < 40, "it was to be stopped in the middle"
    return [(end.code, end.text) for end in ends]


def test_two_nodes_come_to_the_weights_of_one_process(
    nodes: Nodes, recipe: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    assert whole(nodes, by_xvlm, recipe, tmp_path / "run") == alone


def test_a_run_by_torchrun_that_lost_a_node_goes_on_to_the_same_weights(
    nodes: Nodes, recipe: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (code, text), (lost, _) = lose(nodes, by_torchrun, recipe, run, lambda: nodes.kill(1))
    assert (code, lost) == (1, -9), "torchrun's own code for any failure is 1"
    assert "exitcode  : 8" in text, "ours is in its report"
    assert text.count("Error: another process of this run is gone") == 1
    assert f"Try: xvlm pretrain --resume -o {run}\n" in text
    assert whole(nodes, by_torchrun, recipe, run) == alone


def test_a_run_that_lost_the_node_of_rank_0_goes_on_to_the_same_weights(
    nodes: Nodes, recipe: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """With it the store of the run is lost, and who writes the checkpoints."""
    run = tmp_path / "run"
    (lost, _), (code, text) = lose(nodes, by_xvlm, recipe, run, lambda: nodes.kill(0))
    assert (lost, code) == (-9, 8)
    there = f"--gpus 1 --nodes 2 --node-rank 1 --master {HOSTS[0]}:{PORT}"
    assert f"Try: xvlm pretrain --resume -o {run} {there}\n" in text
    assert whole(nodes, by_xvlm, recipe, run) == alone


def test_a_node_that_falls_silent_is_noticed_on_both_sides(
    nodes: Nodes, recipe: Path, tmp_path: Path
) -> None:
    """A pulled cable, a switch, a kernel that hangs: no connection is closed by it."""
    try:
        ends = lose(nodes, by_xvlm, recipe, tmp_path / "run", lambda: nodes.cable("down"))
    finally:
        nodes.cable("up")
    assert [code for code, _ in ends] == [8, 8]
    assert "rank 1 on host node1 is gone since" in ends[0][1]
    assert re.search(r"rank 0 on host (node0|10.77.0.1) is gone since", ends[1][1])
