"""The ranks of one replica: how the leading one reaches the others, and what they do for it."""
