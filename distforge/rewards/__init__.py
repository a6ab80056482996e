"""What an answer that a model wrote is worth: built-in verifiers, and functions of one's own."""

from distforge.rewards.functions import Judged, RewardFunctions, Written

__all__ = ["Judged", "RewardFunctions", "Written"]
