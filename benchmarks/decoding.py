"""Work of writing captions, ours and as released: ``python benchmarks/decoding.py``.

A search with beams over random pictures, by an untrained captioner of a named size that never ends
a caption, in float32 on the CPU. The released procedure (official.md 3.6) keeps the keys and values
of the words, repeats a picture for each beam, and projects its keys and values anew at each step.
It is done with the same weights and the same search, and must find the same captions. Both start
from encoded pictures.

Operations are counted by PyTorch; two are a multiplication with an addition. They are counted with
plain matrix products in attention.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from xvlm_core.inference.generate import Lengths, Written, beam_search
from xvlm_core.models.attention import Attention
from xvlm_core.models.build import build_model
from xvlm_core.models.captioner import Captioner
from xvlm_core.models.decoding import PictureMemory, Speaker, Writing
from xvlm_core.models.packing import Packing
from xvlm_core.models.sizes import SIZES, ModelConfig

GOAL = 3.0
"""How many times fewer operations ours must take."""

PROMPT = (2, 5, 6, 7)
END = 3


@dataclass(frozen=True)
class Result:
    """One comparison.

    Attributes:
        size: of the model.
        pictures: how many.
        beams: of the search.
        length: of the captions, with the prompt.
        flops: operations of ours.
        released_flops: of the released procedure.
        same: whether both found the same captions.
    """

    size: str
    pictures: int
    beams: int
    length: int
    flops: int
    released_flops: int
    same: bool

    @property
    def fewer(self) -> float:
        """How many times fewer operations ours takes."""
        return self.released_flops / self.flops


class _NothingKept:
    """Pictures, a row for each text; their keys and values are projected whenever asked."""

    def __init__(self, patches_RPS: Tensor) -> None:
        self.patches_RPS = patches_RPS

    def attend(self, attention: Attention, hidden_ND: Tensor, packing: Packing) -> Tensor:
        return attention.over_kept(hidden_ND, *attention.keys_values_of(self.patches_RPS), None)


class ReleasedWriting(Writing):
    """A row has a copy of its picture from the start."""

    def __init__(self, speaker: Released) -> None:
        super().__init__(speaker.text, speaker.memory)
        self._patches_IPS, self._beams = speaker.patches_IPS, speaker.beams
        self._left = torch.arange(len(self._patches_IPS))
        self._begun = False
        self._show()
        self._before.rows = len(self._left) * self._beams

    def _show(self) -> None:
        patches_RPS = self._patches_IPS[self._left.repeat_interleave(self._beams)]
        self._source = _NothingKept(patches_RPS)

    @property
    def n_sources(self) -> int:
        """S."""
        return len(self._left)

    def write(self, ids_RT: Tensor) -> Tensor:
        """See :meth:`Writing.write`; the prompt is read once for each beam."""
        if self._begun:
            return self._write(ids_RT)
        return self._write(ids_RT.repeat_interleave(self._beams, 0))[:: self._beams]

    def _write(self, ids_RT: Tensor) -> Tensor:
        rows, new = ids_RT.shape
        positions_T = torch.arange(self.length, self.length + new)
        hidden_ND = self._text.extend(
            ids_RT.reshape(-1),
            positions_T.repeat(rows),
            Packing((new,) * rows),
            self._before,
            source=self._source,
        )
        self.length += new
        return self._text.predict_tokens(hidden_ND.view(rows, new, -1)[:, -1])

    def take(self, rows_R: Tensor) -> None:
        """See :meth:`Writing.take`; the rows are there before the first step."""
        if self._begun:
            super().take(rows_R)
        self._begun = True

    def keep(self, sources_S: Tensor) -> None:
        """See :meth:`Writing.keep`."""
        rows_RB = sources_S[:, None] * self._beams + torch.arange(self._beams)
        self._before.take(rows_RB.reshape(-1))
        self._left = self._left[sources_S]
        self._show()


class Released(Speaker):
    """Begins texts as the released code does."""

    def __init__(self, model: Captioner, patches_IPS: Tensor, beams: int) -> None:
        super().__init__(model.text, PictureMemory(patches_IPS))
        self.patches_IPS, self.beams = patches_IPS, beams

    def begin(self) -> Writing:
        """See :class:`Speaker`."""
        return ReleasedWriting(self)


def captioner(size: str) -> Captioner:
    """Of a named size, untrained; the end is never the most probable."""
    tree = SIZES[size]().model_dump()
    tree["text"]["causal"] = True
    torch.manual_seed(0)
    model = build_model(ModelConfig.model_validate({**tree, "heads": ("masked_lm",)})).eval()
    assert isinstance(model, Captioner)
    assert model.text.lm_head is not None
    with torch.no_grad():
        model.text.embeddings.word.weight.normal_()
        model.text.lm_head.bias[END] = -1e4
    return model


def counted(work: Callable[[], list[list[Written]]]) -> tuple[int, list[tuple[int, ...]]]:
    """Operations of a search, and what it found."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        found = work()
    return counter.get_total_flops(), [one.ids for row in found for one in row]


@torch.no_grad()
def measure(size: str, pictures: int = 4, beams: int = 3, length: int = 20) -> Result:
    """Compare the two.

    Args:
        size: of the model.
        pictures: how many.
        beams: of the search.
        length: of the captions, with the prompt of four tokens.
    """
    model = captioner(size)
    side = model.config.vision.image_size
    draw = torch.Generator().manual_seed(1)
    patches_IPS = model.encode_pictures(torch.randn(pictures, 3, side, side, generator=draw))
    lengths = Lengths(END, length)
    speaker, released = model.speaker(patches_IPS), Released(model, patches_IPS, beams)
    flops, ours = counted(lambda: beam_search(speaker, PROMPT, lengths, beams))
    released_flops, theirs = counted(lambda: beam_search(released, PROMPT, lengths, beams))
    return Result(size, pictures, beams, length, flops, released_flops, ours == theirs)


def main(words: Sequence[str] | None = None) -> int:
    """Print the comparison; 1 where the goal is missed or the captions differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="small", choices=list(SIZES))
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(words)
    result = measure(given.size, given.pictures, given.beams, given.length)
    if given.json:
        print(json.dumps({**asdict(result), "fewer": result.fewer}))
    else:
        print(
            f"{result.size}, {result.pictures} pictures, {result.beams} beams, "
            f"{result.length} tokens: {result.flops:.4g} operations, released "
            f"{result.released_flops:.4g}, {result.fewer:.1f} times as many (goal: {GOAL:g}); "
            f"captions {'equal' if result.same else 'DIFFER'}"
        )
    return 0 if result.same and result.fewer >= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
