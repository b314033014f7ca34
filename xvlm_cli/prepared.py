"""What is said of a store that was just prepared: the balance, the columns, examples, damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xvlm_cli.output import table
from xvlm_core.data.ledger import examples_of, is_damage
from xvlm_core.errors import DataError
from xvlm_core.sources.advice import about_boxes, most_lost
from xvlm_core.sources.base import Source
from xvlm_core.sources.naming import SAVE_AS_UTF_8

if TYPE_CHECKING:
    from xvlm_core.data.manifest import Manifest

_LEDGER = "ledger.jsonl"


def document_of(output: Path, manifest: Manifest) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "store": output,
        "source": manifest.source,
        "records": manifest.records,
        "splits": manifest.splits,
        "counts": manifest.counts,
        "image_root": manifest.image_root,
        "fingerprint": manifest.fingerprint,
    }


def balance_lines(output: Path, manifest: Manifest) -> list[str]:
    """The balance sheet: read = kept + dropped, by reason."""
    splits = ", ".join(f"{name} {n:,}" for name, n in manifest.splits.items())
    lines = [f"{output}: {manifest.records:,} records ({splits})"]
    rows = []
    for item, count in manifest.counts.items():
        dropped = sum(count["dropped"].values())
        repaired = sum(count["repaired"].values())
        rows.append((item, count["read"], count["kept"], dropped, repaired))
    lines += table(("", "read", "kept", "dropped", "repaired"), rows)
    for item, count in manifest.counts.items():
        for what in ("dropped", "repaired"):
            for reason, n in count[what].items():
                lines.append(f"  {n:,} {item} {what}: {reason}")
    if any(count["dropped"] or count["repaired"] for count in manifest.counts.values()):
        lines.append(f"each is a line of {output / 'ledger.jsonl'}")
    return lines


def column_lines(output: Path, document: dict[str, Any]) -> list[str]:
    """Which columns or keys were taken for what, where the source had to find out."""
    path = output / "columns.json"
    if not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    document["columns"] = found
    lines = []
    for file, columns in found.items():
        parts = []
        for name, value in columns.items():
            if name == "not_used" or value in (None, "", [], {}):
                continue
            if name == "box":
                form = ", ".join(str(value[k]) for k in ("format", "unit") if value.get(k))
                parts.append(f"box={_joined(value['columns'])} ({form})")
            else:
                parts.append(f"{name}={_joined(value)}")
        unused = columns.get("not_used")
        more = f"; not used: {_joined(unused)}" if unused else ""
        lines.append(f"{file}: {' '.join(parts)}{more}")
    return lines


def _joined(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} ({n})" for name, n in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def add_samples(output: Path, count: int, document: dict[str, Any], lines: list[str]) -> None:
    """Examples as a picture and as a page beside the store, and the data card."""
    from xvlm_cli.data_card import card_lines
    from xvlm_core.cards.builder import make_card
    from xvlm_core.cards.files import write_samples
    from xvlm_core.data.store import Store

    store = Store.open(output)
    card = make_card(store)
    png, html = (output.parent / f"{output.name}-samples.{end}" for end in ("png", "html"))
    write_samples(store, count, png, html, card)
    document["card"] = card.to_json()
    document["samples"] = {"png": png, "html": html}
    lines += ["", *card_lines(card, ledger=False), "", f"examples: {png}  {html}"]


def refuse_damage(source: Source, output: Path, manifest: Manifest, allowed: float) -> None:
    """Exit code 4 where something was damaged or missing: the store has the rest.

    Raises:
        DataError: more than the allowed share of the items of a type, or boxes were probably read
            in another form than they were written in.
    """
    problems, share = most_lost(manifest.counts, allowed)
    advice = about_boxes(source, manifest.counts) if allowed < 1 else None
    if not problems and advice is None:
        return
    among = is_damage
    if not problems:
        count = manifest.counts["region"]
        lost = count["read"] - count["kept"]
        problems = [f"region: {lost:,} of {count['read']:,} are no boxes as they were read"]
        among = _stands_for_itself
    mend = "mend the input and prepare it again with --overwrite"
    raise DataError(
        f"{output} is prepared, without what is damaged or missing: {'; '.join(problems)}",
        details=examples_of([output / _LEDGER], 10, among=among),
        where=str(output / _LEDGER),
        try_=SAVE_AS_UTF_8
        if any("not UTF-8" in problem for problem in problems)
        else f"{advice}, and --overwrite"
        if advice is not None
        else f"{mend}, or accept it: --allow-damage {share:g}",
    )


def _stands_for_itself(reason: str) -> bool:
    return ": " not in reason
