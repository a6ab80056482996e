"""What each command of the command line does; `distforge.cli` finds them here."""
