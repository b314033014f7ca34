"""``--gpus`` and its like: one result and one error, whichever process they come from.

The processes are real ones with the real command line; what they would train is put in its place
by a few lines, so that each ends in the way that is looked at.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Result, Run
from xvlm_cli import launching, training
from xvlm_cli.training_request import TrainingRequest
from xvlm_core.train import supervisor
from xvlm_core.train.launch import Place

REPOSITORY = Path(__file__).resolve().parents[2]
PROCESS = """
import os, signal, sys, time
from pathlib import Path
import xvlm_cli.training as training
from xvlm_core.errors import ConfigError, DataError, DivergedError
def train(request, out):
    place = request.place
    rank = place.rank
    exec(os.environ["BODY"], {**globals(), **locals()})
training.train = train
from xvlm_cli.app import main
sys.exit(main())
"""
TWO = ("pretrain", "--recipe", "world", "--gpus", "2", "--device", "cpu")
Launched = Callable[..., Result]
Body = Callable[..., None]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may themselves be run by srun."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_")) or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)


@pytest.fixture
def body(monkeypatch: pytest.MonkeyPatch) -> Body:
    """Set what each process does instead of training."""

    def put(text: str, others: float = 0.5) -> None:
        monkeypatch.setattr(launching, "COMMAND", (sys.executable, "-c", PROCESS))
        monkeypatch.setenv("BODY", text)
        patience = supervisor.Patience(others=others, terminate=2.0, stop=5.0)
        monkeypatch.setattr(supervisor, "Patience", lambda: patience)

    return put


DRIVER = """
import sys
from xvlm_cli import launching
launching.COMMAND = (sys.executable, "-c", sys.argv.pop(1))
from xvlm_cli.app import main
code = main()
assert "torch" not in sys.modules
sys.exit(code)
"""


def driven(folder: Path, body: str, *words: str, **variables: str) -> Result:
    """A command line in a process of its own, with all that its processes write."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("XVLM_")}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, PROCESS, *words],
        cwd=folder,
        env={**environ, "PYTHONPATH": str(REPOSITORY), "BODY": body, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = [line for line in done.stderr.splitlines() if "meeting at" not in line]
    return Result(done.returncode, done.stdout, "".join(f"{line}\n" for line in lines))


def test_the_result_is_that_of_rank_0(xvlm: Run, body: Body) -> None:
    body("out.note(f'note {rank}'); out.result({'rank': rank}, f'all of {place.world_size}')")
    result = xvlm(*TWO)
    assert (result.code, result.out) == (0, "all of 2\n")
    document = xvlm(*TWO, "--json").document()
    assert document["result"] == {"rank": 0}
    assert document["schema"] == "xvlm.pretrain/1"


def test_only_rank_0_says_things_in_passing(tmp_path: Path) -> None:
    body = (
        "while rank and not Path('said').exists(): time.sleep(0.02)  # not into another's line\n"
        "out.note(f'note {rank}'); out.warn(f'warning {rank}'); print('stray', rank)\n"
        "Path('said').touch()"
    )
    result = driven(tmp_path, body, *TWO)
    assert (result.code, result.out) == (0, "")
    lines = ["Warning: warning 0", "[rank 1] stray 1", "note 0", "stray 0"]
    assert sorted(result.err.splitlines()) == lines
    assert driven(tmp_path, body, *TWO, "--json").document()["warnings"] == ["warning 0"]


def test_each_process_gets_the_same_command_line(xvlm: Run, body: Body) -> None:
    body("out.result([sys.argv[1:], request.flags, list(request.words)], '')")
    typed = [*TWO, "--max-steps", "3", "--engine", "torch", "--json", "seed=5", "optim.lr=1.0e-5"]
    argv, flags, words = xvlm(*typed).document()["result"]
    assert sorted(argv) == sorted(typed)
    assert flags == {"schedule.max_steps": 3, "train.device": "cpu", "train.engine": "torch"}
    assert words == ["seed=5", "optim.lr=1.0e-5"]
    tuned = ["finetune", "world", "--gpus", "2", "--device", "cpu", "--json", "--init", "a b"]
    assert sorted(xvlm(*tuned).document()["result"][0]) == sorted(tuned)


def test_an_error_of_another_rank_is_the_error(xvlm: Run, body: Body) -> None:
    body(
        "if rank == 1: raise DataError('no cat.jpg', where='coco', try_='look', details=['x'])\n"
        "time.sleep(60)"
    )
    error = xvlm(*TWO).refusal(4)
    assert "Error: rank 1: no cat.jpg\n  x\nWhere: coco\nTry: look\n" in error
    found = xvlm(*TWO, "--json").document()["error"]
    assert (found["code"], found["exit_code"]) == ("data", 4)
    assert found["what"] == "rank 1: no cat.jpg"


def test_an_error_of_all_is_said_once(tmp_path: Path) -> None:
    body = "raise DivergedError('step 7 is not finite', try_='a smaller optim.lr')"
    error = driven(tmp_path, body, *TWO).refusal(6)
    assert error == "Error: step 7 is not finite\nTry: a smaller optim.lr\n"


def test_a_bug_of_one_process_is_one_line(xvlm: Run, body: Body) -> None:
    body("if rank == 1: 1 / 0")
    assert "rank 1: internal error: ZeroDivisionError" in xvlm(*TWO).refusal(1)


def test_a_process_that_dies_without_a_word_is_still_reported(xvlm: Run, body: Body) -> None:
    body("os._exit(3)", others=20)
    assert "rank 0 ended with exit code 3" in xvlm(*TWO).refusal(3)
    assert xvlm(*TWO, "--json").document()["error"]["exit_code"] == 3


def test_a_thread_that_ends_a_process_can_say_why(xvlm: Run, body: Body) -> None:
    body(
        "from xvlm_cli.last_words import report\nfrom xvlm_core.errors import LostRankError\n"
        "if rank == 1: report(out, LostRankError('it stands still', try_='go on')); os._exit(8)\n"
        "os._exit(8)"
    )
    assert "it stands still" in xvlm(*TWO).refusal(8)


MAKE_RUN = """
from xvlm_core.config.resolve import resolve
from xvlm_core.train import runs
recipe = resolve("pretrain/world").recipe
if rank == 0:
    run = runs.create(request.output, recipe=recipe, recipe_name="world", command="x")
    Path("made").write_text(str(run.folder))
while not Path("made").exists(): time.sleep(0.02)
time.sleep(0.1)
if rank == 1: os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""


@pytest.mark.parametrize("output", [(), ("-o", "mine")])
def test_a_killed_process_is_a_lost_rank_with_the_command_that_goes_on(
    xvlm: Run, body: Body, output: tuple[str, ...]
) -> None:
    body(MAKE_RUN)
    error = xvlm(*TWO, *output).refusal(8)
    assert "rank 1 was killed by signal 9 (out of memory?)" in error
    folder = Path("made").read_text()
    assert f"Try: xvlm pretrain --resume -o {folder} --gpus 2 --device cpu\n" in error


def test_where_no_run_was_made_there_is_none_to_go_on_with(xvlm: Run, body: Body) -> None:
    body("os.kill(os.getpid(), signal.SIGKILL)")
    found = xvlm(*TWO, "--json").document()["error"]
    assert (found["code"], found["exit_code"]) == ("lost_rank", 8)
    assert found["try"] == "the same command again"


STOPPED = """
from xvlm_cli.output import Interrupted
def stop(number, _):
    out.result({"step": 9}, "step 9")
    raise Interrupted("all is saved", number, try_="xvlm pretrain --resume -o runs/x")
signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGINT, stop)
Path(f"ready-{rank}").touch()
if rank == 0:
    while not Path("ready-1").exists(): time.sleep(0.02)
    os.kill(os.getppid(), int(os.environ["NUMBER"]))
time.sleep(60)
"""


@pytest.mark.parametrize("number", [2, 15])
@pytest.mark.parametrize("json_document", [False, True])
def test_a_signal_ends_all_with_the_code_and_the_words_of_rank_0(
    tmp_path: Path, number: int, json_document: bool
) -> None:
    words = [*TWO, *["--json"] * json_document]
    result = driven(tmp_path, STOPPED, *words, NUMBER=str(number))
    assert result.code == 128 + number, result
    if json_document:
        document = result.document()
        assert document["result"] == {"step": 9}
        assert document["error"]["code"] == "interrupted"
    else:
        assert result.out == "step 9\n"
    command = "xvlm pretrain --resume -o runs/x --gpus 2"
    assert result.err == f"Error: all is saved\nTry: {command}\n"


@pytest.mark.parametrize(("devices", "said"), [(0, "there is no GPU"), (1, "only one GPU")])
def test_fewer_gpus_than_asked_for_are_refused(
    xvlm: Run, monkeypatch: pytest.MonkeyPatch, devices: int, said: str
) -> None:
    monkeypatch.setattr(launching, "cuda_devices", lambda: devices)
    error = xvlm("pretrain", "--recipe", "16m", "--gpus", "2").refusal(2)
    assert said in error
    assert "Try: --device cpu" in error


def test_the_number_of_gpus_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launching.cuda_devices() == 0


@pytest.mark.parametrize(
    "how", [["--device", "cpu"], ["train.device=cpu"], {"XVLM_TRAIN__DEVICE": "cpu"}]
)
def test_the_device_may_be_named_anywhere(
    xvlm: Run, body: Body, monkeypatch: pytest.MonkeyPatch, how: object
) -> None:
    monkeypatch.setattr(launching, "cuda_devices", lambda: 0)
    body("out.result(None, 'done')")
    words = how if isinstance(how, list) else []
    for name, value in how.items() if isinstance(how, dict) else ():
        monkeypatch.setenv(name, value)
    assert xvlm("pretrain", "--recipe", "16m", "--gpus", "2", *words).code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes", "2"], "--nodes 2 needs --gpus, --node-rank, --master too"),
        (["--nodes", "2", "--gpus", "1", "--master", "n:1"], "needs --node-rank too"),
        (["--node-rank", "1", "--gpus", "2"], "--node-rank 1 does not lie below --nodes 1"),
        (["--master", "node1", "--gpus", "2"], "is not host:port"),
        (["--master", "node1:29500"], "--master is where several processes meet"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    xvlm: Run, words: list[str], said: str
) -> None:
    assert said in xvlm("pretrain", "--recipe", "world", "--device", "cpu", *words).refusal(2)


def test_a_port_in_use_is_refused(xvlm: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = xvlm(*TWO, "--master", f"127.0.0.1:{port}").refusal(2)
    assert f"port {port} of this machine is in use" in error


def test_a_recipe_that_does_not_hold_starts_no_process(xvlm: Run) -> None:
    error = xvlm(*TWO, "optim.lrr=1").refusal(3)
    assert "meeting at" not in error


RANK_1 = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}

RANK_0 = {**RANK_1, "RANK": "0", "LOCAL_RANK": "0"}


@pytest.fixture
def torchrun(xvlm: Run, monkeypatch: pytest.MonkeyPatch) -> Launched:
    """A process of torchrun's: what it does, and with which rank."""

    def run(train: Callable[..., None], rank: int, *words: str) -> Result:
        for name, value in {**RANK_1, "RANK": str(rank), "LOCAL_RANK": str(rank)}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(training, "train", train)
        try:
            return xvlm("pretrain", "--recipe", "world", *words)
        except SystemExit as end:
            return Result(int(str(end.code or 0)), "", "")

    return run


def test_under_torchrun_rank_0_prints_and_rank_1_is_silent(torchrun: Launched) -> None:
    places = []

    def train(request: TrainingRequest, out: launching.Output) -> None:
        places.append(request.place)
        out.result({"rank": request.place.rank}, "done")

    assert torchrun(train, 0).out == "done\n"
    assert torchrun(train, 1) == Result(0, "", "")
    assert torchrun(train, 0, "--json").document()["result"] == {"rank": 0}
    assert places[:2] == [
        Place(0, 2, 0, 2, "127.0.0.1:29500", "torchrun"),
        Place(1, 2, 1, 2, "127.0.0.1:29500", "torchrun"),
    ]


def test_under_torchrun_rank_1_says_its_own_errors_only(torchrun: Launched) -> None:
    from xvlm_core.errors import ConfigError, DataError

    def own(request: TrainingRequest, out: object) -> None:
        raise DataError("no cat.jpg", try_="look")

    def common(request: TrainingRequest, out: object) -> None:
        raise ConfigError("optim.lr is negative", try_="optim.lr=1.0e-4")

    assert "Error: rank 1: no cat.jpg" in torchrun(own, 1).refusal(4)
    assert torchrun(own, 1, "--json").out == "", "the document is rank 0's"
    assert torchrun(common, 1) == Result(3, "", "")
    assert "optim.lr is negative" in torchrun(common, 0).refusal(3)
    assert torchrun(common, 1, "--gpus", "4") == Result(2, "", "")


@pytest.mark.parametrize(
    ("environ", "words", "code", "said"),
    [
        (RANK_0, ["--gpus", "4"], 2, "--gpus 4 was typed, but torchrun started 2"),
        (RANK_0, ["--nodes", "2"], 2, "--nodes 2 was typed, but torchrun started 1"),
        (RANK_0, ["--master", "a:1"], 2, "torchrun says where"),
        ({"RANK": "0"}, [], 3, "WORLD_SIZE is not"),
        ({**RANK_1, "RANK": "2"}, [], 3, "RANK=2 does not lie below WORLD_SIZE=2"),
        ({**RANK_1, "MASTER_PORT": "a"}, [], 3, "MASTER_PORT=a is not a port"),
    ],
)
def test_what_contradicts_the_launcher_is_refused(
    xvlm: Run,
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert said in xvlm("pretrain", "--recipe", "world", *words).refusal(code)


def test_a_dry_run_starts_no_process_and_knows_how_many_there_would_be(
    xvlm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(training, "train", lambda request, out: seen.append(request.place))
    many = ["--gpus", "8", "--nodes", "2"]
    assert xvlm("pretrain", "--recipe", "16m", *many, "--dry-run").code == 0
    assert (seen[0].world_size, seen[0].local_world_size, seen[0].rank) == (16, 8, 0)


# --- --print-slurm -------------------------------------------------------------------------------

SRUN = '#!/bin/bash\nprintf "%s\\n" "$@" > srun.txt\n'


def submitted(folder: Path, script: str) -> list[str]:
    """What the script calls srun with."""
    (folder / "srun").write_text(SRUN)
    (folder / "srun").chmod(0o755)
    (folder / "job.sh").write_text(script)
    assert subprocess.run(["bash", "-n", "job.sh"], cwd=folder).returncode == 0
    environ = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    subprocess.run(["bash", "job.sh"], cwd=folder, env=environ, check=True)
    return (folder / "srun.txt").read_text().splitlines()


def test_the_batch_script_starts_the_run_and_then_goes_on_with_it(
    xvlm: Run, tmp_path: Path
) -> None:
    typed = ["pretrain", "--recipe", "16m", "--max-steps", "9", "--gpus", "8", "--nodes", "2"]
    result = xvlm(*typed, "-o", "runs/my run", "text.tokenizer=a b", "--print-slurm")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0] == "#!/bin/bash"
    options = dict(
        line.removeprefix("#SBATCH ").split(" ")[0].partition("=")[::2]
        for line in lines
        if line.startswith("#SBATCH ")
    )
    assert options["--nodes"] == "2"
    assert options["--ntasks-per-node"] == options["--gpus-per-node"] == "8"
    assert options["--signal"] == "TERM@120"
    assert {"--requeue", "--time", "--cpus-per-task"} <= set(options)

    words = submitted(tmp_path, result.out)
    command = words[words.index("xvlm") :]
    assert command[:2] == ["xvlm", "pretrain"]
    assert command[-2:] == ["-o", "runs/my run"]
    given = ["--recipe", "16m", "--max-steps", "9", "text.tokenizer=a b"]
    assert sorted(command[2:-2]) == sorted(given), "SLURM says how many"
    assert f"--cpus-per-task={options['--cpus-per-task']}" in words

    run = tmp_path / "runs" / "my run"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    words = submitted(tmp_path, result.out)
    command = words[words.index("xvlm") :]
    assert command == ["xvlm", "pretrain", "--resume", "-o", "runs/my run"]


def test_the_batch_script_is_in_the_document(xvlm: Run, tmp_path: Path) -> None:
    result = xvlm("finetune", "refcoco+", "--device", "cpu", "--print-slurm", "--json")
    document = result.document()["result"]
    assert "--gpus-per-node" not in document["script"]
    command = submitted(tmp_path, document["script"])
    command = command[command.index("xvlm") :]
    assert command[:3] == ["xvlm", "finetune", "--device"]
    assert command[-2:] == ["-o", document["run"]]
    assert "--json" not in command
    assert not Path(document["run"]).exists(), "nothing is made"


def test_a_run_that_exists_goes_on_in_both_cases(
    xvlm: Run, tmp_path: Path, pretrained: Path
) -> None:
    words = ["pretrain", "--resume", str(pretrained), "--print-slurm", "--gpus", "2"]
    command = submitted(tmp_path, xvlm(*words).out)
    command = command[command.index("xvlm") :]
    assert shlex.join(command) == f"xvlm pretrain --resume -o {pretrained}"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--overwrite", "--recipe", "16m"], 2),
        (["--node-rank", "0", "--recipe", "16m"], 2),
        (["--resume"], 2),
        (["--recipe", "16m", "optim.lrr=1"], 3),
    ],
)
def test_a_batch_script_that_would_fail_in_the_queue_is_refused(
    xvlm: Run, words: list[str], code: int
) -> None:
    xvlm("pretrain", "--print-slurm", *words).refusal(code)


def test_python_m_is_the_command_line() -> None:
    words = [sys.executable, "-m", "xvlm_cli", "ls", "recipes", "--json"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0
    assert json.loads(done.stdout)["ok"]
