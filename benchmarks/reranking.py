"""Work of re-ranking, ours and the released procedure: ``python benchmarks/reranking.py``.

As many pictures as texts, random ones of 8 to 15 tokens, k candidates a query, an untrained model
of a named size, in float32 on the CPU. The released procedure (official.md 3.1) is done with the
same weights and must find the same scores: texts are padded to 40 tokens, keys and values of a
picture are projected for each pair, both directions are scored apart. Ours is the second pass of
``RetrievalEvaluation``. Both start from encoded pictures and texts.

Operations are counted by PyTorch; two are a multiplication with an addition. They are counted with
plain matrix products in attention, and timed with its fused kernels.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import Measure, Spent, compare, timed
from xvlm_core.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from xvlm_core.models.attention import Attention
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.sizes import SIZES
from xvlm_core.models.text import Layer
from xvlm_core.models.xvlm import XVLM
from xvlm_core.tasks.base import Prediction
from xvlm_core.tasks.retrieval_eval import RetrievalEvaluation
from xvlm_core.tasks.retrieval_passes import CollectionBatch, TextItem

GOAL = 0.35
"""What the ratio of operations must not exceed."""

PADDED = 40
"""Tokens that the released code pads a text to."""


@dataclass(frozen=True)
class Result:
    """One comparison.

    Attributes:
        size: of the model.
        queries: pictures, and texts.
        k: candidates a query.
        flops: operations of ours.
        official_flops: of the released procedure.
        time: seconds of the released procedure to ours, turn by turn; None: not timed.
        largest_gap: between the scores of the two, of any pair.
        spread: standard deviation of the scores.
    """

    size: str
    queries: int
    k: int
    flops: int
    official_flops: int
    time: Measure | None
    largest_gap: float
    spread: float

    @property
    def ratio(self) -> float:
        """Operations of ours to those of the released procedure."""
        return self.flops / self.official_flops


class Collection:
    """Random pictures and texts, encoded; what is ranked with what.

    Args:
        size: of the model.
        queries: pictures, and texts.
        k: candidates a query.
    """

    def __init__(self, size: str, queries: int, k: int) -> None:
        torch.manual_seed(0)
        config = SIZES[size]()
        self.model = XVLM(config).eval()
        with torch.no_grad():  # untrained features are all alike: the nearest would be the same
            for projection in (self.model.vision_proj, self.model.text_proj):
                projection.weight.normal_()
        self.k = k
        side = config.vision.image_size
        draw = torch.Generator().manual_seed(1)
        vocabulary = config.text.vocab_size
        tokens = [
            (2, *torch.randint(5, vocabulary, (int(length) - 1,), generator=draw).tolist())
            for length in torch.randint(8, 16, (queries,), generator=draw)
        ]
        self.batches = []
        for start in range(0, queries, 16):
            rows = range(start, min(start + 16, queries))
            items = [TextItem(f"text:{n}", f"picture:{n}", "", tokens[n]) for n in rows]
            self.batches.append(
                CollectionBatch(
                    pictures_ICHW=torch.randn(len(rows), 3, side, side, generator=draw),
                    texts=PackedTexts.from_lists([item.tokens for item in items]),
                    picture_ids=tuple(item.picture for item in items),
                    items=tuple(items),
                )
            )
        self.states_TLD, self.real_TL = self._padded(tokens)
        self.patches_IPS = torch.cat(
            [self.model.encode_pictures(batch.pictures_ICHW) for batch in self.batches]
        )

    def _padded(self, tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """States of the texts alone, and which tokens are real."""
        states = self.model.encode_texts(PackedTexts.from_lists(tokens))
        width = states.hidden_ND.shape[1]
        padded_TLD = torch.zeros(len(tokens), PADDED, width)
        real_TL = torch.zeros(len(tokens), PADDED, dtype=torch.bool)
        for t, (start, length) in enumerate(
            zip(states.packing.starts, states.packing.lengths, strict=True)
        ):
            padded_TLD[t, :length] = states.hidden_ND[start : start + length]
            real_TL[t, :length] = True
        return padded_TLD, real_TL

    def ready(self) -> Ready:
        """The evaluation after its first pass."""
        vocabulary = Tokenizer.from_vocab(list(SPECIAL_TOKENS))
        evaluation = RetrievalEvaluation(
            [], "test", vocabulary, image_size=1, max_words=1, max_tokens=2, candidates=self.k
        )
        features = [p for batch in self.batches for p in evaluation.predict(self.model, batch)]
        batches = evaluation.next_pass(features)
        assert batches is not None
        return Ready(self, evaluation, list(batches))


class Ready:
    """Everything is encoded, nothing is scored."""

    def __init__(self, of: Collection, evaluation: RetrievalEvaluation, batches: list) -> None:  # type: ignore[type-arg]
        self.of = of
        self.evaluation = evaluation
        self.batches = batches
        pairs = evaluation._pairs
        assert pairs is not None
        self.texts_of_picture = pairs.of_pictures.close()
        self.pictures_of_text = pairs.of_texts.close()

    def ours(self) -> list[Prediction]:
        """The second pass."""
        return [p for batch in self.batches for p in self.evaluation.predict(self.of.model, batch)]

    def officials(self) -> tuple[Tensor, Tensor]:
        """Scores of each picture's texts, then of each text's pictures, ``(queries, k)`` each."""
        of = self.of
        texts = torch.from_numpy(self.texts_of_picture)
        pictures = torch.from_numpy(self.pictures_of_text)
        one = [official_scores(of, rows, torch.full_like(rows, i)) for i, rows in enumerate(texts)]
        two = [
            official_scores(of, torch.full_like(rows, t), rows) for t, rows in enumerate(pictures)
        ]
        return torch.stack(one), torch.stack(two)


def official_scores(of: Collection, texts: Tensor, pictures: Tensor) -> Tensor:
    """Class-1 logits of pairs: padded texts, and a picture of its own for each.

    Args:
        of: the collection.
        texts: number of the text of each pair.
        pictures: number of its picture.
    """
    text = of.model.text
    x_RLD, real_RL = of.states_TLD[texts], of.real_TL[texts]
    patches_RPS = of.patches_IPS[pictures]
    source_RPS = torch.cat([patches_RPS.mean(1, keepdim=True), patches_RPS], dim=1)
    for layer in text.layers[text.config.fusion_layer :]:
        assert isinstance(layer, Layer)
        x_RLD = _padded_layer(layer, x_RLD, real_RL, source_RPS)
    return of.model.match_logits(text.final_norm(x_RLD[:, 0]))[:, 1]


def _padded_layer(layer: Layer, x_RLD: Tensor, real_RL: Tensor, source_RPS: Tensor) -> Tensor:
    cross = layer.cross_attention
    assert cross is not None
    steps: list[tuple[torch.nn.Module, Callable[[Tensor], Tensor]]] = [
        (layer.self_norm, lambda x: _padded_attention(layer.self_attention, x, x, real_RL)),
        (layer.cross_norm, lambda x: _padded_attention(cross, x, source_RPS, None)),
        (layer.mlp_norm, layer.mlp),
    ]
    for norm, step in steps:
        x_RLD = x_RLD + step(norm(x_RLD)) if layer.norm_first else norm(x_RLD + step(x_RLD))
    return x_RLD


def _padded_attention(
    attention: Attention, x_RLD: Tensor, source_RPS: Tensor, real_RL: Tensor | None
) -> Tensor:
    rows, length, width = x_RLD.shape

    def heads(x: Tensor) -> Tensor:
        return x.view(rows, x.shape[1], attention.num_heads, -1).transpose(1, 2)

    q, k, v = attention.query(x_RLD), attention.key(source_RPS), attention.value(source_RPS)
    mask = None if real_RL is None else real_RL[:, None, None]
    found = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), attn_mask=mask)
    out: Tensor = attention.output(found.transpose(1, 2).reshape(rows, length, width))
    return out


def counted(work: Callable[[], object]) -> int:
    """Operations of some work."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return int(counter.get_total_flops())


@torch.no_grad()
def measure(size: str, queries: int, k: int, turns: int) -> Result:
    """Both procedures, counted, compared and timed.

    Args:
        size: of the model.
        queries: pictures, and texts.
        k: candidates a query.
        turns: of both, by the clock; 0: none.
    """
    ready = Collection(size, queries, k).ready()
    gap, spread = _largest_gap(ready)
    flops, official = counted(ready.ours), counted(ready.officials)
    time = None
    if turns:
        ours: Callable[[], Spent] = lambda: timed(ready.ours)  # noqa: E731
        name = f"re-ranking {queries} x {queries}, k = {k}, {size}"
        time = compare(name, ours, lambda: timed(ready.officials), queries, turns)
    return Result(size, queries, k, flops, official, time, gap, spread)


def _largest_gap(ready: Ready) -> tuple[float, float]:
    """Between the scores of the two procedures, and the standard deviation of theirs."""
    scores: dict[tuple[int, int], float] = {}
    for batch, prediction in zip(ready.batches, ready.ours(), strict=True):
        picture = int(batch.picture.partition(":")[2])
        pairs = zip(batch.texts.tolist(), prediction["scores"].tolist(), strict=True)
        scores |= {(picture, text): score for text, score in pairs}
    of_pictures, of_texts = ready.officials()
    ours = (
        [[scores[p, t] for t in row] for p, row in enumerate(ready.texts_of_picture.tolist())],
        [[scores[p, t] for p in row] for t, row in enumerate(ready.pictures_of_text.tolist())],
    )
    gap = (torch.tensor(ours) - torch.stack([of_pictures, of_texts])).abs().max()
    return float(gap), float(of_pictures.std())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the ratios; 1 where the operations exceed the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--queries", type=int, default=64, help="pictures, and texts")
    parser.add_argument("--k", type=int, default=16, help="candidates a query")
    parser.add_argument("--turns", type=int, default=3, help="by the clock; 0: count only")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    r = measure(options.size, options.queries, options.k, options.turns)
    if options.json:
        seconds = None if r.time is None else 1 / r.time.ratio
        print(json.dumps({**asdict(r), "ratio": r.ratio, "wall_ratio": seconds}, indent=1))
    else:
        print(f"model {r.size}, {r.queries} pictures x {r.queries} texts, k = {r.k}")
        print(f"operations: {r.flops / 1e9:,.1f} against {r.official_flops / 1e9:,.1f} billion")
        print(f"ratio of operations: {r.ratio:.3f} (goal: at most {GOAL})")
        if r.time is not None:
            print(f"ratio of time: {1 / r.time.ratio:.3f}")
        print(f"largest difference of a score: {r.largest_gap:.1g} (their spread: {r.spread:.2g})")
    return 0 if r.ratio <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
