"""The batch script that runs a command line on SLURM. Imports no torch.

Options of ``sbatch`` and ``srun`` as in https://slurm.schedmd.com/sbatch.html and srun.html.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
{gpus}#SBATCH --cpus-per-task={cpus}
#SBATCH --time=24:00:00             # put in how long it may take
#SBATCH --signal=TERM@120           # two minutes before that, the run saves and stops
#SBATCH --requeue                   # after a lost node the job is started again, and goes on
#SBATCH --open-mode=append
#SBATCH --output={log}
set -u

run={run}
if [ -f "$run/run.json" ]; then
    command=({resume} -o "$run")
else
    command=({start} -o "$run")
fi
# When one process ends the others are not killed: they notice, and rank 0 may still be saving.
# srun does not take the number of cores from the job by itself.
exec srun --kill-on-bad-exit=0 --cpus-per-task={cpus} "${{command[@]}}"
"""


@dataclass(frozen=True)
class BatchJob:
    """What a script asks for and runs.

    Attributes:
        name: name of the job.
        start: the command that starts the run; the script adds ``-o``.
        resume: the command that goes on with it; the script adds ``-o``.
        run: the run's folder; where it is a run already, ``resume`` is run instead of ``start``.
        nodes: machines.
        tasks: processes on each; one a GPU.
        gpus: whether they use GPUs.
        cpus: cores of each process: itself and its loader processes.
    """

    name: str
    start: Sequence[str]
    resume: Sequence[str]
    run: Path
    nodes: int
    tasks: int
    gpus: bool
    cpus: int

    def script(self) -> str:
        """The text, ready for ``sbatch``."""
        name = re.sub(r"[^\w.+-]+", "-", self.name)
        return _SCRIPT.format(
            name=name,
            nodes=self.nodes,
            tasks=self.tasks,
            gpus=f"#SBATCH --gpus-per-node={self.tasks}\n" if self.gpus else "",
            cpus=self.cpus,
            log=f"{name}-%j.log",
            run=shlex.quote(str(self.run)),
            start=shlex.join(self.start),
            resume=shlex.join(self.resume),
        )
