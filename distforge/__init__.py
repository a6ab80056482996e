"""distforge: teach a small language model to reason, and prove that it does."""

__version__ = "0.1.0"
