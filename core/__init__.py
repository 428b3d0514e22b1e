"""Pure decisions and nouns. Nothing here does I/O, reads a clock or imports torch, Ray or gRPC."""
