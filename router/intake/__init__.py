"""A call comes in: whose it is, whether it is valid, its tokens."""
