"""The search for the best cluster for some traffic: candidates, bounds, simulation, verdict."""
