"""Logs, metrics and the context of the current request."""
