"""The reference tokeniser, in one run for all texts."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Sequence
from pathlib import Path

from xvlm_core.metrics.caption.ptb import PUNCTUATION

_OPTIONS = (
    "-Dfile.encoding=UTF-8",
    "-cp",
    "stanford-corenlp-3.4.1.jar",
    "edu.stanford.nlp.process.PTBTokenizer",
    "-preserveLines",
    "-lowerCase",
)


def java_tokens(texts: Sequence[str], folder: Path) -> list[list[str]]:
    """As pycocoevalcap's PTBTokenizer, which runs it with whatever encoding the machine has."""
    found = importlib.util.find_spec("pycocoevalcap")
    assert found is not None
    assert found.submodule_search_locations
    package = Path(next(iter(found.submodule_search_locations)))
    file = folder / "texts"
    file.write_bytes("\n".join(text.replace("\n", " ") for text in texts).encode())
    done = subprocess.run(
        ["java", *_OPTIONS, str(file)],
        cwd=package / "tokenizer",
        capture_output=True,
        check=True,
        timeout=120,
    )
    lines = done.stdout.decode().split("\n")
    assert len(lines) >= len(texts)
    return [
        [word for word in line.rstrip().split(" ") if word and word not in PUNCTUATION]
        for line in lines[: len(texts)]
    ]


def alone(texts: Sequence[str]) -> list[str]:
    """A line of no matter behind each: what stands in the next line can change a last token."""
    return [line for text in texts for line in (text, "x")]
