"""What was typed to predict."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from xvlm_cli.model_request import ModelRequest


@dataclass(frozen=True)
class CaptionOptions:
    """How captions are looked for, as it was typed.

    Attributes:
        search: beams, the most probable word at each step, or draws.
        beams: of the search.
        captions: of each picture.
        temperature: samples: that scores are divided by.
        top_k: samples: only the most probable so many words; None: all.
        top_p: samples: only the most probable words that have this probability together.
        seed: of the draws.
        max_length: the most tokens, with CLS and the prompt.
        min_length: beams: a caption of fewer tokens goes on.
    """

    search: Literal["beam", "greedy", "sample"] = "beam"
    beams: int = 3
    captions: int = 1
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0
    max_length: int = 20
    min_length: int = 5

    @classmethod
    def of(cls, *, search: str | None, **given: Any) -> CaptionOptions:
        """Of options that were given, or None: what is said of samples alone asks for samples.

        Raises:
            UsageError: no such search, or an option that it has no use for.
        """
        from xvlm_core.errors import UsageError

        known = {name: value for name, value in given.items() if value is not None}
        drawn = [name for name in ("temperature", "top_k", "top_p", "seed") if name in known]
        wanted = search or ("sample" if drawn else "beam")
        if wanted not in ("beam", "greedy", "sample"):
            raise UsageError(
                f"no search {wanted!r}; there is beam, greedy, sample", try_="--search beam"
            )
        searched = [name for name in ("beams", "min_length") if name in known]
        useless: list[str] = [*searched] if wanted == "sample" else [*drawn]
        if wanted == "greedy":
            useless = [*drawn, *searched]
        if useless:
            option = "--" + useless[0].replace("_", "-")
            other = "beam" if useless[0] in searched else "sample"
            raise UsageError(
                f"{option} is for --search {other}, not for {wanted}", try_=f"--search {other}"
            )
        return cls(search=wanted, **known)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Request(ModelRequest):
    """What was typed to predict; each task (one of :data:`xvlm_cli.predict.TASKS`) takes its part.

    Attributes:
        phrases: texts that are also names of files.
        explain: grounding: the heat map of each word.
        proposals: grounding: boxes to choose from (a store).
        top: retrieval and vqa: answers to a question.
        index: retrieval: folder of the index.
        rebuild: retrieval: make it anew.
        region: retrieval: which part of the picture answers.
        answers: vqa: file of the answers to choose from.
        open_answers: vqa: written word by word, without a list.
        captioning: caption: how captions are looked for.
    """

    phrases: tuple[str, ...]
    explain: bool
    proposals: str | None
    top: int
    index: Path | None
    rebuild: bool
    region: bool
    answers: Path | None
    open_answers: bool
    captioning: CaptionOptions = field(default_factory=CaptionOptions)
