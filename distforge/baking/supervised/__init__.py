"""Supervised baking: verified traces go into the weights."""
