"""METEOR and SPICE: programs in Java, run through pycocoevalcap. Imports no torch.

Whatever is wrong with them is one line of a reason, never an end: the other scores do not need it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xvlm_core.metrics.caption.ngrams import Score

_PROBE_SECONDS = 20.0
_SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


class Unavailable(Exception):
    """A score cannot be had here; the message is the reason, in one line."""


def java_problem(seconds: float = _PROBE_SECONDS) -> str | None:
    """Why Java cannot be used; None: it can.

    Args:
        seconds: that it may take to tell its version.
    """
    program = shutil.which("java")
    if program is None:
        return "no java found"
    try:
        done = subprocess.run(
            [program, "-version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"java does not answer within {seconds:g} s"
    except OSError as error:
        return f"java cannot be started: {error.strerror or error}"
    if done.returncode:
        said = _first_line(done.stderr.decode(errors="replace"))
        return f"java is broken: it ends with code {done.returncode}" + (f" ({said})" * bool(said))
    return None


def meteor(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *, seconds: float | None = None
) -> Score:
    """METEOR 1.5 (Denkowski and Lavie, WMT 2014), English.

    Args:
        candidates: N captions, their tokens joined by spaces.
        references: of each, likewise.
        seconds: that it may take in all; None: ten minutes and 50 ms a caption.

    Raises:
        Unavailable: for whatever reason.
    """
    folder = _package()
    if not (folder / "meteor" / "meteor-1.5.jar").is_file():
        raise Unavailable("the program of METEOR is missing in pycocoevalcap")
    limit = 600 + 0.05 * len(candidates) if seconds is None else seconds
    scorer: Any = None
    late = threading.Event()
    try:
        from pycocoevalcap.meteor.meteor import Meteor

        scorer = Meteor()
        # what it says on stderr is not read there: a full pipe would stop it
        threading.Thread(target=_drained, args=(scorer.meteor_p.stderr,), daemon=True).start()
        timer = threading.Timer(limit, _ended, args=(scorer.meteor_p, late))
        timer.start()
        try:
            corpus, each = scorer.compute_score(
                {number: list(own) for number, own in enumerate(references)},
                {number: [candidate] for number, candidate in enumerate(candidates)},
            )
        finally:
            timer.cancel()
        return Score(float(corpus), np.array(each, dtype=np.float64))
    except Exception as error:
        if late.is_set():
            raise Unavailable(f"METEOR took more than {limit:g} s") from error
        raise Unavailable(f"METEOR broke off ({_said(error)})") from error
    finally:
        if scorer is not None:
            _put_away(scorer)


def spice(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """SPICE (Anderson et al., ECCV 2016): F-measure of the tuples of scene graphs.

    Args:
        candidates: N captions, their tokens joined by spaces.
        references: of each, likewise.

    Raises:
        Unavailable: for whatever reason; also where its parser would have to be downloaded.
    """
    library = _package() / "spice" / "lib"
    missing = [name for name in _SPICE_JARS if not (library / name).is_file()]
    if missing:
        raise Unavailable(
            f"SPICE's parser is not there ({missing[0]}), and nothing is downloaded; "
            "get_stanford_models() of pycocoevalcap.spice.get_stanford_models fetches it"
        )
    try:
        from pycocoevalcap.spice.spice import Spice

        with _stdout_on_stderr():
            corpus, each = Spice().compute_score(
                {number: list(own) for number, own in enumerate(references)},
                {number: [candidate] for number, candidate in enumerate(candidates)},
            )
        return Score(float(corpus), np.array([row["All"]["f"] for row in each], dtype=np.float64))
    except Exception as error:
        raise Unavailable(f"SPICE broke off ({_said(error)})") from error


def _package() -> Path:
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations:
        raise Unavailable("pycocoevalcap is not installed (pip install 'xvlm[meteor]')")
    return Path(next(iter(found.submodule_search_locations)))


def _ended(process: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    process.kill()


def _put_away(scorer: Any) -> None:
    """End the program; what is deleted later neither waits for its lock nor writes to it."""
    scorer.meteor_p.kill()
    with contextlib.suppress(OSError):
        scorer.meteor_p.stdin.close()
    scorer.meteor_p.wait()
    if scorer.lock.locked():
        scorer.lock.release()


def _drained(stream: Any) -> None:
    with contextlib.suppress(OSError, ValueError):
        while stream.read(1 << 16):
            pass


@contextlib.contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """What a program writes on stdout goes to stderr: stdout is for results."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _said(error: Exception) -> str:
    return _first_line(str(error)) or type(error).__name__


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
