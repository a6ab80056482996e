"""What comes in from phase 2, and what goes out to phase 4."""
