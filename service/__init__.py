"""Serves a bundle over HTTP: the BentoML service, its routes, limits, metrics, page and commands."""
