"""Streams to workers, what they say, and where they are listed."""
