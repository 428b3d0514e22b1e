"""`crossdock bench engine`: the engine beside what the machine could do, and other servers."""
