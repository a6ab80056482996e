"""Quiet-STaR: thoughts that make predictions better, written in parallel and learned by reward."""
