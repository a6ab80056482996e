"""Models whose thoughts are known, by the way in which they were made, to work or to be theatre."""
