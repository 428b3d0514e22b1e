"""The handoff's shells: streams between P and D, and the transports that move KV blocks."""
