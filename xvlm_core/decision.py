"""When a probability counts as a yes: one rule for what is drawn, said and scored.

Standard library only.
"""

from __future__ import annotations

PROBABLE = 0.5
"""From this probability on the answer is yes; 0.5 itself is a yes."""


def is_probable(probability: float) -> bool:
    """Whether a probability counts as a yes: a phrase is there, a statement is true."""
    return probability >= PROBABLE
