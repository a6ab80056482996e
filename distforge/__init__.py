"""distforge: teach a small language model to reason, and prove that it does."""

from distforge.extras import explain_missing

__version__ = "0.1.0"

explain_missing()
