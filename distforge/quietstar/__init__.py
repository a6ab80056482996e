"""Quiet-STaR: thoughts that make predictions better, written in parallel and learned by reward."""

from distforge.quietstar.thinking_model import ThinkingModel

__all__ = ["ThinkingModel"]
