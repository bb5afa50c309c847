"""Prototypes: initialisation, projection, nearest patches, removal."""
