"""Evaluation: free generation and its scoring."""
