"""The serving cluster in virtual time: production decisions, fitted step times."""
