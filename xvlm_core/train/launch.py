"""Where a process stands among those of a run: read from the environment. Imports no torch.

Three launchers are known besides none: our own supervisor (``--gpus N``), torchrun, and SLURM's
``srun``. What they set is theirs to define:
https://pytorch.org/docs/stable/elastic/run.html#environment-variables and
https://slurm.schedmd.com/srun.html (section OUTPUT ENVIRONMENT VARIABLES).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from xvlm_core.errors import ConfigError, UsageError

LAUNCHER_PID = "XVLM_LAUNCHER_PID"
"""Environment variable that our supervisor sets: its process id."""

_SLURM_PORTS = range(20000, 30000)
# Steps that are no srun of the user's: batch script, salloc's shell and the like have ids at the
# upper end of 32 bits (slurm.h: SLURM_MAX_NORMAL_STEP_ID).
_SLURM_SPECIAL_STEP = 0xFFFFFFF0


@dataclass(frozen=True)
class Place:
    """Where this process stands among those of a run.

    Attributes:
        rank: number of the process, from 0.
        world_size: processes of the run.
        local_rank: number of the process on its machine; also the number of its GPU.
        local_world_size: processes of the run on this machine.
        master: ``host:port`` at which the processes meet; None when alone.
        by: what started the process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master: str | None = None
    by: Literal["alone", "xvlm", "torchrun", "slurm"] = "alone"

    @property
    def nodes(self) -> int:
        """Machines of the run, if all have as many processes as this one."""
        return -(-self.world_size // self.local_world_size)


ALONE = Place()
"""One process, started by hand."""


def restarts() -> str:
    """How often torchrun has started the processes anew (``--max-restarts``).

    They find the store as the ones before left it: what is written there has this in its name.
    """
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


@dataclass(frozen=True)
class Address:
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``host:port`` (an IPv6 address in brackets: ``[::1]:29500``).

        Raises:
            UsageError: it is of another form.
        """
        found = re.fullmatch(r"(?:\[([0-9a-fA-F:.%\w]+)\]|([^\s:\[\]/]+)):([0-9]{1,5})", text)
        if found is None or not 0 < int(found[3]) < 65536:
            raise UsageError(
                f"--master {text} is not host:port with a port from 1 to 65535",
                try_="--master node1:29500",
            )
        return cls(found[1] or found[2], int(found[3]))


def place_of(environ: Mapping[str, str]) -> Place:
    """The place that the environment tells: our supervisor's, torchrun's, SLURM's, or alone.

    A batch script of ``sbatch`` and a shell of ``salloc`` are alone, however many tasks the job
    has: only ``srun`` starts several.

    Raises:
        ConfigError: the environment contradicts itself; one line, with the variable.
    """
    if LAUNCHER_PID in environ:
        _number(environ, LAUNCHER_PID, low=1)
        return _by_variables(environ, "xvlm")
    if "RANK" in environ:
        return _by_variables(environ, "torchrun")
    if _in_slurm_step(environ):
        return _by_slurm(environ)
    # some images set WORLD_SIZE=1 for everything that runs in them
    if environ.get("WORLD_SIZE", "1") != "1":
        raise _wrong(
            f"WORLD_SIZE={environ['WORLD_SIZE']} is set and RANK is not",
            "WORLD_SIZE",
            "unset WORLD_SIZE, or start with torchrun, srun or --gpus",
        )
    return ALONE


def _by_variables(environ: Mapping[str, str], by: Literal["xvlm", "torchrun"]) -> Place:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    given = next(name for name in (LAUNCHER_PID, "RANK") if name in environ)
    for name in names:
        if name not in environ:
            raise _wrong(
                f"{given} is set and {name} is not",
                name,
                f"export {name}=..., or start with torchrun, srun or --gpus",
            )
    world_size = _number(environ, "WORLD_SIZE", low=1)
    local_world_size = _number(environ, "LOCAL_WORLD_SIZE", low=1)
    rank = _number(environ, "RANK")
    local_rank = _number(environ, "LOCAL_RANK")
    _below(rank, "RANK", world_size, "WORLD_SIZE")
    _below(local_rank, "LOCAL_RANK", local_world_size, "LOCAL_WORLD_SIZE")
    _at_most(local_world_size, "LOCAL_WORLD_SIZE", world_size, "WORLD_SIZE")
    if not environ["MASTER_ADDR"].strip():
        raise _wrong("MASTER_ADDR is empty", "MASTER_ADDR", "MASTER_ADDR=127.0.0.1")
    master = Address(environ["MASTER_ADDR"].strip(), _port(environ))
    return Place(rank, world_size, local_rank, local_world_size, str(master), by)


def _in_slurm_step(environ: Mapping[str, str]) -> bool:
    """Whether ``srun`` started this process together with others."""
    if "SLURM_PROCID" not in environ or "SLURM_STEP_ID" not in environ:
        return False  # a batch script has the first only, a shell of salloc none
    if _number(environ, "SLURM_STEP_ID") >= _SLURM_SPECIAL_STEP:
        return False
    return _slurm_tasks(environ) > 1


def _slurm_tasks(environ: Mapping[str, str]) -> int:
    # SLURM_NTASKS may be the job's (srun --preserve-env), the other is always the step's
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        if name in environ:
            return _number(environ, name, low=1)
    return 1


def _by_slurm(environ: Mapping[str, str]) -> Place:
    world_size = _slurm_tasks(environ)
    rank = _number(environ, "SLURM_PROCID")
    _below(rank, "SLURM_PROCID", world_size, "SLURM_STEP_NUM_TASKS")
    if "SLURM_LOCALID" not in environ:
        raise _wrong("SLURM_PROCID is set and SLURM_LOCALID is not", "SLURM_LOCALID", "srun")
    local_rank = _number(environ, "SLURM_LOCALID")
    local_world_size = _slurm_local_tasks(environ, world_size)
    _below(local_rank, "SLURM_LOCALID", local_world_size, "SLURM_STEP_TASKS_PER_NODE")
    for name, own in (("RANK", rank), ("WORLD_SIZE", world_size)):
        if name in environ and _number(environ, name) != own:
            raise _wrong(
                f"{name}={environ[name]} is set, but srun made this process {rank} of {world_size}",
                name,
                f"unset {name}",
            )
    return Place(rank, world_size, local_rank, local_world_size, _slurm_master(environ), "slurm")


def _slurm_local_tasks(environ: Mapping[str, str], world_size: int) -> int:
    text = environ.get("SLURM_STEP_TASKS_PER_NODE")
    if text is None:
        nodes = _number(environ, "SLURM_STEP_NUM_NODES", low=1, default=1)
        return -(-world_size // nodes)
    tasks = [
        int(count)
        for count, _, times in re.findall(r"(\d+)(\(x(\d+)\))?", text)
        for _ in range(int(times or 1))
    ]
    node = _number(environ, "SLURM_NODEID", default=0)
    if node >= len(tasks) or sum(tasks) != world_size:
        raise _wrong(
            f"SLURM_STEP_TASKS_PER_NODE={text} does not fit node {node} of {world_size} tasks",
            "SLURM_STEP_TASKS_PER_NODE",
            "srun --ntasks-per-node=GPUS",
        )
    return tasks[node]


def _slurm_master(environ: Mapping[str, str]) -> str:
    """``MASTER_ADDR`` and ``MASTER_PORT`` where a script set them, else of the step and the job."""
    host = environ.get("MASTER_ADDR", "").strip()
    if not host:
        name = next((n for n in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST") if n in environ), "")
        if not name:
            raise _wrong(
                "srun named no nodes: SLURM_STEP_NODELIST is not set",
                "SLURM_STEP_NODELIST",
                "export MASTER_ADDR=NODE",
            )
        host = first_host(environ[name], where=name)
    if "MASTER_PORT" in environ:
        return str(Address(host, _port(environ)))
    job = _number(environ, "SLURM_JOB_ID", default=0)
    return str(Address(host, _SLURM_PORTS[job % len(_SLURM_PORTS)]))


def first_host(nodelist: str, where: str = "SLURM_STEP_NODELIST") -> str:
    """The first host of a SLURM node list: ``rack[02-04,7]n1,other`` is ``rack02n1``.

    Args:
        nodelist: host names separated by commas, with ranges of numbers in brackets.
        where: name of the variable, for the error.

    Raises:
        ConfigError: it is no node list.
    """
    # up to the first comma outside brackets; each bracket gives its first number, zeros kept
    found = re.match(r"(?:[\w.-]|\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\])+(?=,|$)", nodelist.strip())
    if found is None:
        raise _wrong(f"{where}={nodelist} is no list of nodes", where, "export MASTER_ADDR=NODE")
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", found[0])


def _number(
    environ: Mapping[str, str], name: str, *, low: int = 0, default: int | None = None
) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not re.fullmatch(r"[0-9]{1,18}", text.strip()) or int(text) < low:
        raise _wrong(f"{name}={text} is not a whole number from {low}", name, f"unset {name}")
    return int(text)


def _port(environ: Mapping[str, str]) -> int:
    text = environ["MASTER_PORT"].strip()
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise _wrong(
            f"MASTER_PORT={text} is not a port from 1 to 65535", "MASTER_PORT", "MASTER_PORT=29500"
        )
    return int(text)


def _below(value: int, name: str, limit: int, limit_name: str) -> None:
    if value >= limit:
        raise _wrong(
            f"{name}={value} does not lie below {limit_name}={limit}",
            name,
            f"{limit_name}={value + 1}, or the same number of processes on every node",
        )


def _at_most(value: int, name: str, limit: int, limit_name: str) -> None:
    if value > limit:
        raise _wrong(
            f"{name}={value} is more than {limit_name}={limit}", name, f"{limit_name}={value}"
        )


def _wrong(what: str, variable: str, try_: str) -> ConfigError:
    return ConfigError(what, where=f"the environment, {variable}", try_=try_)
