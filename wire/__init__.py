"""The nouns of core on the wire of worker.proto, for every process that speaks it."""
