"""One request from its arrival to its end: what to do when something happens. Pure."""
