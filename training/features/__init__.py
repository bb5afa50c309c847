"""Backbones: what they compute, what is kept of it, what learns."""
