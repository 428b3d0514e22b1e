"""What prefill and decode workers share: router streams, the engine's thread, text, statistics."""
