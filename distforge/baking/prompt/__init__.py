"""Prompt baking: the prompted model teaches itself to do without the prompt."""
