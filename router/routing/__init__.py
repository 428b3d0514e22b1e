"""Which workers get a request: what is known of them, predictions, policies."""
