"""NarLM: a causal language model through its whole life, and what the mathematics says about every step.

Importing this package is cheap on purpose: the model registers itself on ``import pipeline.model``.
"""

__version__ = "0.1.0"
