"""Whether thoughts do the work: one exam and one verdict, for the trainer and for who judges."""

from distforge.handoff.verdict import Verdict
from distforge.theater.config import TheaterConfig
from distforge.theater.judge import evaluate_theater, examinee

__all__ = ["TheaterConfig", "Verdict", "evaluate_theater", "examinee"]
