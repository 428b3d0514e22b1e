"""Real clusters under the traffic that was simulated."""
