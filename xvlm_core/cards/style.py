"""How the page of a data card looks: light and dark, narrow and wide."""

from __future__ import annotations

COLOURS = 8
"""Colours of boxes, ``.c0`` to ``.c7``; then they come again."""

MARKED_BOXES = 100
"""Boxes of a picture that are marked together with their text, ``.n0`` to ``.n99``."""

_LIGHT = ("#c8102e", "#0060a8", "#1d7a2f", "#a84300", "#7b1fa2", "#00707a", "#b0189a", "#6b4a12")
_DARK = ("#ff6b81", "#5cb8ff", "#5fd075", "#ffa056", "#d08cff", "#4fd8e0", "#ff7ae8", "#d9a85a")

_BASE = """
:root{color-scheme:light dark;--ink:#1c1c1e;--paper:#fff;--faint:#5f6368;--line:#d5d8dc;
--tint:#f5f6f7;--bad:#b3261e;--link:#0058b0}
*{box-sizing:border-box}
body{margin:0 auto;max-width:75rem;padding:1rem;background:var(--paper);color:var(--ink);
font:16px/1.45 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;margin:.2em 0}h2{margin:1.6em 0 .4em}
h3{font-size:1.05rem;margin:1.4em 0 .4em}h4{margin:.8em 0 .2em;color:var(--faint);font-size:.9rem}
p{margin:.3em 0}a{color:var(--link)}nav a{margin-right:1em}code{font-size:.9em}
.note,small{color:var(--faint);font-size:.88rem}.problem{color:var(--bad)}
article{border-top:1px solid var(--line);padding-bottom:1rem;display:grid;gap:0 1.5rem;
grid-template-columns:minmax(0,1fr)}
article h3{font-weight:600}
.pictures{display:grid;gap:.5rem;grid-template-columns:minmax(0,1fr);align-items:start}
.frame{position:relative;width:fit-content;max-width:100%;line-height:0}
.frame img{max-width:100%;height:auto}
.missing{background:var(--line);padding:2rem 1rem;min-height:8rem}
svg{position:absolute;inset:0;width:100%;height:100%;filter:drop-shadow(0 0 1px #000)}
svg rect{fill:transparent;stroke-width:2;vector-effect:non-scaling-stroke;stroke:var(--edge)}
svg rect.proposal{stroke:#ffe000;stroke-width:1;pointer-events:none}
ul,ol{margin:.2em 0;padding-left:1.6em}
.boxes a{color:var(--box);text-decoration:none;font-weight:600}
a:focus-visible{outline:2px solid var(--link);outline-offset:2px}
a:target rect,.boxes a:target{fill:var(--mark);background:var(--mark)}
.wide{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem;text-align:start;border-bottom:1px solid var(--line);vertical-align:top;
overflow-wrap:normal;font-weight:400}
thead th{color:var(--faint);white-space:nowrap}
td{min-width:3rem}.number{text-align:end;white-space:nowrap}
"""

_WIDE = """
@media(min-width:50rem){article{grid-template-columns:minmax(0,40rem) minmax(0,1fr)}
article h3{grid-column:1/-1}.pair{grid-template-columns:minmax(0,1fr) minmax(0,1fr)}}
"""


def style() -> str:
    """The style sheet: the base, the colours, and that a box and its text are marked together."""
    # On a picture always the bright ones, with a dark edge: it may be dark or light.
    light = "".join(
        f".c{n}{{--box:{colour};--edge:{bright};--mark:{bright}55}}"
        for n, (colour, bright) in enumerate(zip(_LIGHT, _DARK, strict=True))
    )
    dark = "".join(f".c{n}{{--box:{bright}}}" for n, bright in enumerate(_DARK))
    night = (
        "@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--paper:#17181a;--faint:#a3a8ae;"
        f"--line:#3c4043;--tint:#202124;--bad:#ff8a80;--link:#8ab4f8}}{dark}}}"
    )
    pairs = ",".join(
        f"article:has(.n{n}:is(:hover,:focus-visible)) .n{n}" for n in range(MARKED_BOXES)
    )
    marked = ",".join(
        f"article:has(.n{n}:is(:hover,:focus-visible)) .n{n} rect" for n in range(MARKED_BOXES)
    )
    return (
        f"{_BASE}{light}{night}{_WIDE}{pairs}{{background:var(--mark)}}"
        f"{marked}{{fill:var(--mark);stroke-width:4}}"
    )
