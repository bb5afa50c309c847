"""Prototypes: where they start, projection, nearest patches."""
