"""The model side of a thought: where, how it is written, what follows. Nothing is learned here."""
