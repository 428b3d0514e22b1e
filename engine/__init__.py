"""The model runtime: reads a model folder, holds the KV pool, computes steps, samples tokens."""
