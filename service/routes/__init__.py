"""Request handlers, grouped by subject."""
