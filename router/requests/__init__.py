"""All requests that run: carries out what their flows decide, and brings tokens to clients."""
