"""What a run leaves to read: summaries, tables, plots, pages."""
