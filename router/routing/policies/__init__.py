"""How to choose workers, one way per file."""
