"""Measures a cluster, and works out how it should be built."""
