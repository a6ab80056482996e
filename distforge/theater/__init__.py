"""Whether thoughts do the work: one exam and one verdict, for the trainer and for who judges."""

from distforge.theater.config import TheaterConfig
from distforge.theater.judge import evaluate_theater, examinee
from distforge.theater.verdict import Verdict

__all__ = ["TheaterConfig", "Verdict", "evaluate_theater", "examinee"]
