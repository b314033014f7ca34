"""xvlm: multi-grained vision-language pre-training and grounding."""

__version__ = "0.1.0"
