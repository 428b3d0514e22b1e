"""What all processes that speak our protocols share: core's nouns on the wire, gRPC streams."""
