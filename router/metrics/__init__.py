"""What the router tells of itself."""
