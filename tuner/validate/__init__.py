"""How well predictions agree with a real cluster."""
