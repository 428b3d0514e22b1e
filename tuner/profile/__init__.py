"""Latency profiles: measured on the real engine, or computed from a description of hardware."""
