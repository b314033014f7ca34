"""Where a process stands, read from the environment; the processes of a run, started and ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from xvlm_core.errors import ConfigError, UsageError
from xvlm_core.train.launch import Address, Place, first_host, place_of
from xvlm_core.train.supervisor import (
    Job,
    Outcome,
    Patience,
    free_address,
    require_free,
    supervise,
)

REPOSITORY = Path(__file__).resolve().parents[2]
TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
}
BATCH = {  # what a batch script of sbatch sees that asked for 16 tasks on 2 nodes
    "SLURM_JOB_ID": "1234567",
    "SLURM_JOB_NODELIST": "node[07-08]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NTASKS": "16",
    "SLURM_TASKS_PER_NODE": "8(x2)",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
STEP = {
    **BATCH,
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_NODEID": "1",
}
ALLOCATION = {name: value for name, value in BATCH.items() if not name.endswith("ID")}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({}, Place(), id="nothing"),
        pytest.param({"WORLD_SIZE": "1"}, Place(), id="an image that sets WORLD_SIZE=1"),
        pytest.param(TORCHRUN, Place(5, 8, 1, 4, "node1:29500", "torchrun"), id="torchrun"),
        pytest.param(
            {**STEP, **TORCHRUN},
            Place(5, 8, 1, 4, "node1:29500", "torchrun"),
            id="torchrun that srun started",
        ),
        pytest.param(
            {**TORCHRUN, "XVLM_LAUNCHER_PID": "77"},
            Place(5, 8, 1, 4, "node1:29500", "xvlm"),
            id="ours",
        ),
        pytest.param(
            {**STEP, **TORCHRUN, "XVLM_LAUNCHER_PID": "77"},
            Place(5, 8, 1, 4, "node1:29500", "xvlm"),
            id="ours within a step",
        ),
        pytest.param(
            {**TORCHRUN, "MASTER_ADDR": "fe80::1"},
            Place(5, 8, 1, 4, "[fe80::1]:29500", "torchrun"),
            id="IPv6",
        ),
        pytest.param(BATCH, Place(), id="batch script"),
        pytest.param(ALLOCATION, Place(), id="shell of salloc"),
        pytest.param(
            {**BATCH, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "2"},
            Place(),
            id="interactive step of salloc",
        ),
        pytest.param({**STEP, "SLURM_STEP_NUM_TASKS": "1"}, Place(), id="srun of one task"),
        pytest.param(STEP, Place(11, 16, 3, 8, "node07:24567", "slurm"), id="srun"),
        pytest.param(
            {k: v for k, v in STEP.items() if k not in ("SLURM_STEP_NUM_TASKS",)},
            Place(11, 16, 3, 8, "node07:24567", "slurm"),
            id="srun that only says SLURM_NTASKS",
        ),
        pytest.param(
            {**STEP, "SLURM_NTASKS": "4"},  # srun --preserve-env
            Place(11, 16, 3, 8, "node07:24567", "slurm"),
            id="the job's number of tasks differs from the step's",
        ),
        pytest.param(
            {**STEP, "MASTER_ADDR": "login", "MASTER_PORT": "29400"},
            Place(11, 16, 3, 8, "login:29400", "slurm"),
            id="srun with a master of its own",
        ),
        pytest.param(
            {
                **STEP,
                "SLURM_STEP_TASKS_PER_NODE": "3,4(x2),5",
                "SLURM_NODEID": "3",
                "SLURM_PROCID": "15",
                "SLURM_LOCALID": "4",
            },
            Place(15, 16, 4, 5, "node07:24567", "slurm"),
            id="srun with unequal nodes",
        ),
    ],
)
def test_the_place_is_what_the_launcher_says(environ: Mapping[str, str], expected: Place) -> None:
    assert place_of(environ) == expected


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not"),
        ({"WORLD_SIZE": "4"}, "RANK is not"),
        ({**TORCHRUN, "RANK": "8"}, "RANK=8 does not lie below WORLD_SIZE=8"),
        ({**TORCHRUN, "RANK": "-1"}, "RANK=-1 is not a whole number"),
        ({**TORCHRUN, "LOCAL_RANK": "4"}, "LOCAL_RANK=4 does not lie below LOCAL_WORLD_SIZE=4"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "9"}, "LOCAL_WORLD_SIZE=9 is more than WORLD_SIZE=8"),
        ({**TORCHRUN, "WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({**TORCHRUN, "MASTER_PORT": "http"}, "MASTER_PORT=http is not a port"),
        ({**TORCHRUN, "MASTER_PORT": "65536"}, "MASTER_PORT=65536 is not a port"),
        ({**TORCHRUN, "MASTER_ADDR": " "}, "MASTER_ADDR is empty"),
        ({k: v for k, v in TORCHRUN.items() if k != "LOCAL_RANK"}, "LOCAL_RANK is not"),
        ({"XVLM_LAUNCHER_PID": "12"}, "RANK is not"),
        ({**TORCHRUN, "XVLM_LAUNCHER_PID": "x"}, "XVLM_LAUNCHER_PID=x"),
        ({**STEP, "SLURM_PROCID": "16"}, "SLURM_PROCID=16 does not lie below"),
        ({**STEP, "SLURM_LOCALID": "8"}, "SLURM_LOCALID=8 does not lie below"),
        ({k: v for k, v in STEP.items() if k != "SLURM_LOCALID"}, "SLURM_LOCALID is not"),
        ({**STEP, "SLURM_STEP_NODELIST": "node[07-"}, "no list of nodes"),
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "8"}, "does not fit node 1 of 16 tasks"),
        ({**STEP, "WORLD_SIZE": "4"}, "srun made this process 11 of 16"),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS=many"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused_with_one_line(
    environ: Mapping[str, str], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        place_of(environ)
    assert said in caught.value.what
    assert "\n" not in caught.value.what
    assert caught.value.where
    assert caught.value.try_


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[01-03,7]", "node01"),
        ("node[7,01-03],x", "node7"),
        ("rack[2-3]n[010-012]-ib,x[1-2]", "rack2n010-ib"),
        ("gpu-a.cluster.org", "gpu-a.cluster.org"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize("nodes", ["", "node[1-", "node[]", "[", ",a", "a b", "node[1-2]]", "a;b"])
def test_what_is_no_node_list_is_refused(nodes: str) -> None:
    with pytest.raises(ConfigError, match="no list of nodes"):
        first_host(nodes)


@pytest.mark.parametrize("text", ["node1", "node1:", ":29500", "node1:0", "node1:99999", "a b:1"])
def test_a_master_is_a_host_and_a_port(text: str) -> None:
    with pytest.raises(UsageError, match="is not host:port"):
        Address.parse(text)
    assert str(Address.parse("node1:29500")) == "node1:29500"
    assert Address.parse("[fe80::1]:1") == Address("fe80::1", 1)
    assert str(Address("fe80::1", 1)) == "[fe80::1]:1"


def test_it_imports_no_torch() -> None:
    code = (
        "import sys, xvlm_core.train.launch, xvlm_core.train.supervisor, xvlm_core.train.slurm\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


# --- the supervisor, with children that are quick ------------------------------------------------

QUICK = Patience(others=0.5, terminate=1.0, stop=2.0)
PATIENT = Patience(others=20.0)  # where all end by themselves, on a machine however slow
CHILD = """
import os, signal, subprocess, sys, time
rank, folder = int(os.environ["RANK"]), os.environ["FOLDER"]
def leave(name, text=""):
    with open(os.path.join(folder, name), "a") as stream:
        stream.write(text)
leave(f"pid-{rank}", str(os.getpid()))
def wait(seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.02)
def until(name):
    while not os.path.exists(os.path.join(folder, name)):
        time.sleep(0.02)
def report(data):
    with os.fdopen(int(os.environ["XVLM_REPORT_FD"]), "wb") as stream:
        stream.write(data)
"""


def job(folder: Path, body: str, processes: int = 2, **environ: str) -> Job:
    return Job(
        command=[sys.executable, "-c", CHILD + body],
        processes=processes,
        master=free_address(),
        environ={**os.environ, "FOLDER": str(folder), **environ},
    )


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in sorted(folder.glob("pid-*")) if path.read_text()]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where children leave files; none of them may be left after the test."""
    yield tmp_path
    end = time.monotonic() + 1
    while any(alive(pid) for pid in pids(tmp_path)) and time.monotonic() < end:
        time.sleep(0.02)
    left = [pid for pid in pids(tmp_path) if alive(pid)]
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    assert left == []
    assert pids(tmp_path), "the children never ran"


def test_each_process_knows_its_place(folder: Path) -> None:
    body = "import json; report(json.dumps(dict(os.environ)).encode())"
    outcome = supervise(job(folder, body, 3), QUICK)
    assert (outcome.code, outcome.rank, outcome.killed_by) == (0, None, None)
    environs = {rank: json.loads(report) for rank, report in outcome.reports.items()}
    assert sorted(environs) == [0, 1, 2]
    masters = set()
    for rank, environ in environs.items():
        place = place_of(environ)
        assert (place.rank, place.world_size) == (rank, 3)
        assert (place.local_rank, place.local_world_size, place.by) == (rank, 3, "xvlm")
        assert environ["XVLM_LAUNCHER_PID"] == str(os.getpid())
        masters.add(place.master)
    assert len(masters) == 1


def test_ranks_of_the_second_node_follow_those_of_the_first(tmp_path: Path) -> None:
    two = Job(["x"], 4, Address("node1", 29500), nodes=2, node_rank=1, environ={})
    place = place_of(two.environment(3))
    assert place == Place(7, 8, 3, 4, "node1:29500", "xvlm")


def test_the_cores_are_shared_out_unless_the_user_did() -> None:
    shared = Job(["x"], 1, Address("node1", 29500), environ={}).environment(0)
    assert int(shared["OMP_NUM_THREADS"]) == len(os.sched_getaffinity(0))
    many = Job(["x"], 4096, Address("node1", 29500), environ={}).environment(0)
    assert many["OMP_NUM_THREADS"] == "1"
    given = Job(["x"], 2, Address("node1", 29500), environ={"OMP_NUM_THREADS": "7"})
    assert given.environment(1)["OMP_NUM_THREADS"] == "7"


def timed(work: Job, patience: Patience = QUICK) -> tuple[Outcome, float]:
    start = time.monotonic()
    return supervise(work, patience), time.monotonic() - start


def test_when_one_fails_the_others_are_ended_and_its_code_is_returned(folder: Path) -> None:
    body = "until('pid-0'); sys.exit(4) if rank == 1 else wait()"
    outcome, seconds = timed(job(folder, body))
    assert (outcome.code, outcome.rank, outcome.killed_by) == (4, 1, None)
    assert seconds < 5


def test_others_may_end_by_themselves_first(folder: Path) -> None:
    body = """
until('pid-0')
if rank == 1: sys.exit(6)
time.sleep(0.3); leave("said"); sys.exit(6)
"""
    outcome, _ = timed(job(folder, body), PATIENT)
    assert (outcome.code, outcome.rank) == (6, 0), "the same error: rank 0 says it"
    assert (folder / "said").exists()


def test_a_killed_process_is_a_lost_rank_whatever_the_others_say_of_it(folder: Path) -> None:
    body = """
until('pid-0')
if rank == 0: sys.exit(8)  # it noticed first
time.sleep(0.2); os.kill(os.getpid(), signal.SIGKILL)
"""
    outcome, _ = timed(job(folder, body), PATIENT)
    assert (outcome.code, outcome.rank, outcome.killed_by) == (8, 1, 9)


def test_an_error_weighs_more_than_the_loss_that_others_feel(folder: Path) -> None:
    body = "until('pid-0'); sys.exit(8) if rank == 0 else (time.sleep(0.2), sys.exit(4))"
    outcome, _ = timed(job(folder, body), PATIENT)
    assert (outcome.code, outcome.rank) == (4, 1)


def test_a_process_that_ignores_sigterm_is_killed(folder: Path) -> None:
    body = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
leave(f"deaf-{rank}")
if rank == 1: until("deaf-0"); sys.exit(5)
wait()
"""
    outcome, seconds = timed(job(folder, body))
    assert (outcome.code, outcome.rank) == (5, 1)
    assert QUICK.others + QUICK.terminate <= seconds < 8


def test_the_waits_add_up_to_less_than_20_seconds() -> None:
    patience = Patience()
    assert patience.others + patience.terminate + 3 < 20


def test_what_a_killed_process_had_started_is_killed_too(folder: Path) -> None:
    body = """
if rank == 1:
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    leave("pid-worker", str(worker.pid))
    os.kill(os.getpid(), signal.SIGKILL)
until("pid-worker")
"""
    outcome, seconds = timed(job(folder, body))
    assert outcome.killed_by == 9
    assert seconds < 5, "its worker holds the pipes"


def test_a_process_that_was_stopped_does_not_hurry_the_others(folder: Path) -> None:
    """Rank 1 stopped by someone's SIGTERM: all agreed on the last step, rank 0 still saves."""
    body = """
until('pid-0')
if rank == 1: sys.exit(143)
time.sleep(1.5); leave("saved"); sys.exit(143)
"""
    outcome, _ = timed(job(folder, body), Patience(others=0.1, terminate=0.1, stop=10))
    assert outcome.code == 143
    assert (folder / "saved").exists()


def test_rank_0_speaks_and_the_others_mutter_with_their_number(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = "print('out', rank, flush=True); print(f'err {rank}\\nmore', file=sys.stderr)"
    supervise(job(folder, body), QUICK)
    said = capfd.readouterr()
    assert said.out == "out 0\n"
    lines = sorted(said.err.splitlines())
    assert lines == ["[rank 1] err 1", "[rank 1] more", "err 0", "more"]


def test_a_long_report_comes_whole(folder: Path) -> None:
    outcome = supervise(job(folder, "report(str(rank).encode() * 300_000)"), QUICK)
    assert outcome.reports == {0: b"0" * 300_000, 1: b"1" * 300_000}


def test_a_port_in_use_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        work = Job([sys.executable, "-c", "1/0"], 2, Address("127.0.0.1", port))
        with pytest.raises(UsageError, match=f"port {port} of this machine is in use") as caught:
            supervise(work, QUICK)
        assert caught.value.try_
    require_free(Address("127.0.0.1", port))


DRIVER = """
import json, os, sys
from xvlm_core.train.supervisor import Address, Job, Patience, free_address, supervise
body, stop = sys.argv[1], float(sys.argv[2])
work = Job([sys.executable, "-c", body], 2, free_address())
outcome = supervise(work, Patience(others=0.5, terminate=1.0, stop=stop))
print(json.dumps([outcome.code, outcome.rank, outcome.killed_by]))
"""
COUNTS = """
def count(number, _):
    leave(f"signal-{rank}", f"{number} ")
    global stopped; stopped = True
stopped = False
signal.signal(signal.SIGTERM, count); signal.signal(signal.SIGINT, count)
leave(f"ready-{rank}")
while not stopped: time.sleep(0.02)
time.sleep(0.5)  # to count a second one
"""


def signalled(folder: Path, body: str, send: str, number: int, stop: float = 5.0) -> list[object]:
    """A supervisor in a process group of its own, which gets a signal; how it all ended."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, CHILD + body, str(stop)],
        env={**os.environ, "FOLDER": str(folder)},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 20
        while not all((folder / f"ready-{rank}").exists() for rank in (0, 1)):
            assert time.monotonic() < end
            time.sleep(0.02)
        (os.killpg if send == "group" else os.kill)(driver.pid, number)
        if send == "twice":
            time.sleep(0.1)
            os.kill(driver.pid, number)
        said, _ = driver.communicate(timeout=20)
    finally:
        driver.kill()
        driver.wait()
    return list(json.loads(said))


@pytest.mark.parametrize("send", ["supervisor", "twice", "group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_each_process_once(
    folder: Path, send: str, number: signal.Signals
) -> None:
    """Also Ctrl-C, which a terminal sends to the whole group."""
    body = COUNTS + f"sys.exit({128 + number})"
    assert signalled(folder, body, send, number)[0] == 128 + number
    for rank in (0, 1):
        assert (folder / f"signal-{rank}").read_text().split() == [str(int(number))]


def test_a_closed_terminal_stops_the_run_in_order(folder: Path) -> None:
    assert signalled(folder, COUNTS + "sys.exit(143)", "supervisor", signal.SIGHUP)[0] == 143
    assert (folder / "signal-0").read_text().split() == ["15"]


def test_a_run_that_ended_well_in_spite_of_the_signal_ended_well(folder: Path) -> None:
    assert signalled(folder, COUNTS, "supervisor", signal.SIGTERM) == [0, None, None]


def test_a_process_that_does_not_stop_is_killed_when_the_grace_is_over(folder: Path) -> None:
    body = COUNTS + "\nif rank == 1: wait()\nleave('saved'); sys.exit(143)"
    start = time.monotonic()
    assert signalled(folder, body, "supervisor", signal.SIGTERM, stop=2.0)[0] == 143
    assert time.monotonic() - start < 15
    assert (folder / "saved").exists()
