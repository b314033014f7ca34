"""The page of a model on the hub: ``README.md`` made from what is known of it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from xvlm_core.weights.folder import ModelInfo
from xvlm_core.weights.provenance import Provenance, ScoreRecord


def model_card(info: ModelInfo, provenance: Provenance | None, name: str) -> str:
    """Markdown with the hub's header: what the model is, data, scores, how to use it.

    Args:
        info: what ``config.json`` says.
        provenance: who made it; None: not known, and the page says so.
        name: ``owner/name``.
    """
    title = name.rpartition("/")[2]
    parts = [
        _header(info),
        f"# {title}",
        f"{_plain(info.about).rstrip('.') or info.task}. It is a model of "
        "[X-VLM](https://arxiv.org/abs/2111.08276), trained with `xvlm`.",
        "## Use",
        *_use(info, name),
        "## What it is",
        _table(("", ""), _facts(info)),
        "## Data",
        *_data(info, provenance),
        "## Scores",
        *_scores(provenance),
        "## Provenance",
        *_made(provenance),
    ]
    return "\n\n".join(parts) + "\n"


def _header(info: ModelInfo) -> str:
    pipeline = {
        "grounding": "zero-shot-object-detection",
        "pretrain": "feature-extraction",
        "vqa": "visual-question-answering",
    }
    fields = {
        "library_name": "xvlm",
        "pipeline_tag": pipeline.get(info.task),
        "tags": ["x-vlm", "vision-language", info.task],
    }
    kept = {key: value for key, value in fields.items() if value}
    return f"---\n{yaml.safe_dump(kept, sort_keys=False)}---"


def _use(info: ModelInfo, name: str) -> list[str]:
    lines = ["pip install xvlm"]
    finds_boxes = info.task in ("grounding", "pretrain", "box_pretrain")
    if finds_boxes and {"box", "matching"} <= set(info.config.heads):
        lines.append(
            'xvlm predict grounding image.jpg "man wearing backpack" '
            f"--checkpoint {name} --download"
        )
    if info.task == "nlvr2":
        lines.append(
            'xvlm predict nlvr2 a.jpg b.jpg "both pictures contain a dog" '
            f"--checkpoint {name} --download"
        )
    if info.task == "vqa":
        lines.append(
            'xvlm predict vqa image.jpg "what colour is the dog?" '
            f"--checkpoint {name} --download" + ("" if info.answers else " --open")
        )
    task = "nlvr2" if info.config.text.pictures == 2 else "refcoco+"
    if info.config.decoder_layers:
        task = "vqa"
    lines.append(f"xvlm finetune {task} --init {name} init.download=true")
    return ["```bash\n" + "\n".join(lines) + "\n```"]


def _facts(info: ModelInfo) -> list[tuple[str, str]]:
    vision, text = info.config.vision, info.config.text
    return [
        ("task", info.task),
        ("size", info.config.size),
        ("pictures", f"{vision.image_size} x {vision.image_size} px, {vision.kind}"),
        ("texts", f"up to {info.max_words} words, {info.max_tokens} tokens"),
        ("layers", f"{text.fusion_layer} text, {text.num_layers - text.fusion_layer} cross"),
        ("heads", ", ".join(info.config.heads) or "none"),
    ]


def _data(info: ModelInfo, provenance: Provenance | None) -> list[str]:
    parts = [f"Trained on: {_plain(info.trained_on) or 'not recorded'}."]
    chain = list(_chain(provenance))
    rows = [
        (f"{made.task}, step {made.step:,}", store, f"`{fingerprint}`")
        for made in chain
        for store, fingerprint in made.stores.items()
    ]
    if rows:
        parts.append("A store is known by its fingerprint: equal data, equal fingerprint.")
        parts.append(_table(("training", "store", "fingerprint"), rows))
    return parts


def _scores(provenance: Provenance | None) -> list[str]:
    if provenance is None or not provenance.scores:
        return ["Not recorded: these weights were not validated by the run that made them."]
    rows = [(name, *_score_row(score)) for name, score in provenance.scores.items()]
    return [
        "Fractions, not per cent. On the validation data of the run, by which its best checkpoint "
        "was chosen.",
        _table(("score", "value", "split", "n", "how"), rows),
    ]


def _score_row(score: ScoreRecord) -> tuple[str, str, str, str]:
    value = "not finite" if score.value is None else f"{score.value:.4f}"
    return value, score.split, f"{score.n:,}", score.convention


def _made(provenance: Provenance | None) -> list[str]:
    if provenance is None:
        return ["Not recorded."]
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    rows = [
        ("recipe", f"{provenance.recipe_name} (SHA-256 `{provenance.recipe_sha256 or 'unknown'}`)"),
        ("run", f"{provenance.run}, step {provenance.step:,}"),
        ("command", f"`{provenance.command}`"),
        ("saved", provenance.saved or provenance.created),
        ("versions", versions),
    ]
    start = provenance.started_from
    if start is not None:
        digest = f" (SHA-256 of its weights `{start.weights_sha256}`)"
        rows.append(("started from", start.place + (digest if start.weights_sha256 else "")))
    return [_table(("", ""), rows), "The whole recipe is in `provenance.json`."]


def _chain(provenance: Provenance | None) -> list[Provenance]:
    """The training itself, and those that its first weights come from, oldest last."""
    found = []
    while provenance is not None:
        found.append(provenance)
        provenance = provenance.started_from.provenance if provenance.started_from else None
    return found


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """One line without marks that would begin HTML."""
    return " ".join(text.split()).replace("<", "&lt;")
