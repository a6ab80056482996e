"""Whether thoughts do the work: one exam, for the trainer and for who judges."""
