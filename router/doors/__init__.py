"""What clients speak to: OpenAI's HTTP, gRPC, probes and metrics."""
