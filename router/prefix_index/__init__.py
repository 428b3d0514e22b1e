"""Which blocks which worker caches, from the workers' own events."""
