"""What a model starts from: every tensor by name, and how many numbers came from where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xvlm_core.models.xvlm import XVLM
from xvlm_core.weights.reading import Report


@dataclass(frozen=True)
class Source:
    """One file or folder that weights were taken from.

    Attributes:
        part: what it is for, e.g. "picture encoder".
        named: as the recipe or the command line names it.
        report: what became of each of its tensors.
    """

    part: str
    named: str
    report: Report


@dataclass(frozen=True)
class FirstWeights:
    """Where the weights of a new model come from.

    Attributes:
        notes: some lines worth showing.
        lines: the whole list: totals, then every tensor by name.
    """

    notes: list[str]
    lines: list[str]


def account_for(model: XVLM, sources: Sequence[Source], more: Sequence[str] = ()) -> FirstWeights:
    """Say of every parameter whether it is as in a file, resized, or random.

    Args:
        model: with its first weights.
        sources: what was read, in order.
        more: further notes.
    """
    taken = {name for source in sources for name in source.report.matched}
    taken |= {note.name for source in sources for note in source.report.copied}
    resized = {note.name: note for source in sources for note in source.report.converted}
    reasons = {note.name: note for source in sources for note in source.report.fresh}
    numbers = {name: value.numel() for name, value in model.named_parameters()}
    random = [name for name in numbers if name not in taken and name not in resized]

    def amount(names: Sequence[str]) -> str:
        return f"{len(names):,} tensors, {sum(numbers[name] for name in names):,} parameters"

    total = sum(numbers.values())
    counts = [
        f"as in the files: {amount([name for name in numbers if name in taken])}",
        f"resized or converted: {amount([name for name in numbers if name in resized])}",
        f"random: {amount(random)}",
    ]
    notes = [f"{source.part} from {source.named}: {source.report.summary()}" for source in sources]
    if sources:
        n_random = sum(numbers[name] for name in random)
        notes.append(
            f"of {total:,} parameters {total - n_random:,} come from files, "
            f"{n_random:,} are random ({', '.join(_parts(random)) or 'none'})"
        )
    else:
        notes.append("all weights start from random numbers (init.vision and init.text are null)")
    lines = [f"{len(numbers):,} tensors, {total:,} parameters", *counts]
    for source in sources:
        lines += ["", f"# {source.part} from {source.named}", *source.report.full_lines()]
    lines += ["", f"# random: {amount(random)}"]
    lines += [
        f"  {name}  {numbers[name]:,}" + (f"  {reasons[name].note}" if name in reasons else "")
        for name in random
    ]
    return FirstWeights([*notes, *more], lines)


def _parts(names: Sequence[str]) -> list[str]:
    """Parts of the model, short: heads by their names, the rest by stack."""
    parts: dict[str, None] = {}
    for name in names:
        first, _, rest = name.partition(".")
        if first == "vision":
            parts["picture encoder"] = None
        elif first == "text":
            second = rest.split(".")
            is_cross = any(piece.startswith("cross_") for piece in second)
            is_head = second[0] == "lm_head"
            parts["text.lm_head" if is_head else "cross-attention" if is_cross else "text"] = None
        else:
            parts[first] = None
    return list(parts)
