"""The load generator behind `crossdock bench`: plans requests, sends them, measures answers."""
