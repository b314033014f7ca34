"""Two "nodes" on one machine: two network namespaces joined by a cable (a veth pair).

Each has a host name, an interface and an address of its own, so what only works between processes
of one machine fails here: a loopback address handed to a peer, say. To see it by hand, as root:

    python -m tests.faults.two_nodes [FOLDER]
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.tasks import recipes

REPOSITORY = Path(__file__).resolve().parents[2]
HOSTS = ("10.77.0.1", "10.77.0.2")
PORT = 29517
STEPS = 40
WITHIN = 30.0
"""Seconds in which everything has ended after a loss."""

_NAME = "xvlm-{pid}-{node}"


def missing() -> str | None:
    """Why this machine cannot have two nodes; None: it can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "unshare"):
        if shutil.which(tool) is None:
            return f"no command {tool} (iproute2, util-linux)"
    try:
        with Nodes() as nodes:
            done = subprocess.run([*nodes.inside(0), "true"], capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not permitted: {error.stderr.strip()}"
    return None if done.returncode == 0 else f"no command runs in one: {done.stderr.strip()}"


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Nodes:
    """The two namespaces; with them goes everything that runs in them."""

    def __init__(self) -> None:
        self.names = [_NAME.format(pid=os.getpid(), node=node) for node in (0, 1)]

    def __enter__(self) -> Nodes:
        """Make them, after those that a killed process may have left."""
        for name in _ip("netns", "list").split():
            found = re.fullmatch(_NAME.format(pid="([0-9]+)", node="[01]"), name)
            if found and not Path(f"/proc/{found[1]}").exists():
                _ip("netns", "delete", name)
        try:
            for name in self.names:
                _ip("netns", "add", name)
            cable = ["eth0", "netns", self.names[0], "type", "veth", "peer", "name", "eth0"]
            _ip("link", "add", *cable, "netns", self.names[1])
            for name, host in zip(self.names, HOSTS, strict=True):
                _ip("-n", name, "address", "add", f"{host}/24", "dev", "eth0")
                for device in ("lo", "eth0"):
                    _ip("-n", name, "link", "set", device, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End what runs in them, and delete them. The cable goes with them."""
        for node, name in enumerate(self.names):
            with contextlib.suppress(subprocess.CalledProcessError):
                self.kill(node)
                _ip("netns", "delete", name)

    def inside(self, node: int) -> list[str]:
        """What stands before a command that is to run on a node, under its host name."""
        rename = 'echo "$0" > /proc/sys/kernel/hostname && exec "$@"'
        words = ["ip", "netns", "exec", self.names[node], "unshare", "--uts"]
        return [*words, "sh", "-c", rename, f"node{node}"]

    def pids(self, node: int) -> list[int]:
        """The processes on a node."""
        return [int(word) for word in _ip("netns", "pids", self.names[node]).split()]

    def kill(self, node: int) -> None:
        """End every process on a node at once, as a power cut does."""
        for pid in self.pids(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def cable(self, state: str) -> None:
        """Pull the cable (``down``) or plug it in (``up``): nobody is told of it."""
        _ip("-n", self.names[1], "link", "set", "eth0", state)


def write_recipe(folder: Path) -> Path:
    """Stores of painted pictures and a recipe over them, of a very small model."""
    recipes.write_stores(folder / "data", train=14)
    recipe = recipes.recipe(
        folder / "data",
        data={"images": {"batch_size": 4}, "regions": {"max_images": 4}},
        schedule={"max_steps": STEPS},
        train={
            "device": "cpu",
            "threads": 1,
            "log_every": 1,
            "checkpoint_every": 5,
            "micro_batches": 2,
        },
    )
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    return path


def pretrain(recipe: Path, run: Path) -> list[str]:
    """What starts the run, or goes on with it where it is."""
    how = ["--resume"] if (run / "run.json").is_file() else ["--recipe", str(recipe)]
    return ["-m", "xvlm_cli", "pretrain", *how, "-o", str(run), "--device", "cpu"]


def by_torchrun(node: int, words: Sequence[str]) -> list[str]:
    """The command of a node, with torchrun."""
    where = ["--master-addr", HOSTS[0], "--master-port", str(PORT)]
    nodes = ["--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1"]
    return [sys.executable, "-m", "torch.distributed.run", *nodes, *where, *words]


def by_xvlm(node: int, words: Sequence[str]) -> list[str]:
    """The command of a node, with xvlm alone."""
    nodes = ["--nodes", "2", "--node-rank", str(node), "--gpus", "1"]
    return [sys.executable, *words, *nodes, "--master", f"{HOSTS[0]}:{PORT}"]


@dataclass(frozen=True)
class End:
    """How the command of a node ended: exit code and all that it wrote."""

    code: int
    text: str


class Session:
    """One command on each node.

    Args:
        nodes: where.
        commands: of node 0 and of node 1.
        folder: for what they write.
    """

    def __init__(self, nodes: Nodes, commands: Sequence[Sequence[str]], folder: Path) -> None:
        self.nodes = nodes
        folder.mkdir(parents=True, exist_ok=True)
        # no interface is named: to find it is what is looked at
        unset = ("GLOO_SOCKET_IFNAME", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        environ = {
            name: value
            for name, value in os.environ.items()
            if name not in unset and not name.startswith(("XVLM_", "SLURM_"))
        }
        self._logs = [folder / f"node{node}.txt" for node in (0, 1)]
        self._processes = []
        for node, command in enumerate(commands):
            with self._logs[node].open("wb") as stream:
                process = subprocess.Popen(
                    [*nodes.inside(node), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    env={**environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
                )
            self._processes.append(process)

    def wait_for_step(self, run: Path, step: int, seconds: float = 120.0) -> None:
        """Until the log of the run has this step."""
        until = time.monotonic() + seconds
        while last_step(run) < step:
            ended = [process.poll() for process in self._processes]
            assert ended == [None, None], self.texts()
            assert time.monotonic() < until, self.texts()
            time.sleep(0.02)

    def end(self, seconds: float) -> list[End]:
        """How both ended; nothing is left on either node.

        Raises:
            subprocess.TimeoutExpired: they did not end in time.
        """
        until = time.monotonic() + seconds
        codes = [p.wait(max(0.1, until - time.monotonic())) for p in self._processes]
        left = [self.nodes.pids(node) for node in (0, 1)]
        while any(left) and time.monotonic() < until:
            time.sleep(0.05)
            left = [self.nodes.pids(node) for node in (0, 1)]
        assert left == [[], []], f"still running: {left}"
        return [End(code, text) for code, text in zip(codes, self.texts(), strict=True)]

    def texts(self) -> list[str]:
        """What each wrote so far."""
        return [log.read_text(errors="replace") for log in self._logs]


def last_step(run: Path) -> int:
    """The last step in the log of a run; 0: none yet."""
    with contextlib.suppress(OSError):
        for line in reversed((run / "metrics.jsonl").read_text().splitlines()):
            with contextlib.suppress(ValueError):
                return int(json.loads(line)["step"])
    return 0


def final_weights(run: Path) -> dict[str, bytes]:
    """What a finished run came to: the model, and the state of the optimizer."""
    folder = run / "checkpoints" / f"step-{STEPS:08d}"
    names = ("model.safetensors", "optimizer.safetensors")
    return {name: (folder / name).read_bytes() for name in names}


def main() -> int:
    """Train on two nodes, lose one, go on; print what happened."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the namespaces go in any case
    if reason := missing():
        print(f"not possible here: {reason}", file=sys.stderr)
        return 7
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="two-nodes-"))
    folder.mkdir(parents=True, exist_ok=True)
    recipe = write_recipe(folder)
    with Nodes() as nodes:
        for name, how in (("torchrun", by_torchrun), ("xvlm", by_xvlm)):
            whole, broken = folder / f"{name}-whole", folder / f"{name}-broken"
            commands = [how(node, pretrain(recipe, whole)) for node in (0, 1)]
            codes = [end.code for end in Session(nodes, commands, folder / "a").end(120)]
            print(f"{name}: {STEPS} steps on two nodes, exit codes {codes}")
            commands = [how(node, pretrain(recipe, broken)) for node in (0, 1)]
            session = Session(nodes, commands, folder / "b")
            session.wait_for_step(broken, 12)
            nodes.kill(1)
            since = time.monotonic()
            codes = [end.code for end in session.end(WITHIN)]
            seconds = time.monotonic() - since
            print(f"{name}: node 1 killed, all over in {seconds:.1f} s, exit codes {codes}")
            commands = [how(node, pretrain(recipe, broken)) for node in (0, 1)]
            codes = [end.code for end in Session(nodes, commands, folder / "c").end(120)]
            same = final_weights(whole) == final_weights(broken)
            print(f"{name}: resumed, exit codes {codes}, the same weights: {same}")
            if codes != [0, 0] or not same:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
