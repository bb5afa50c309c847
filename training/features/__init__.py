"""Backbones: the parts that learn, their precision, and the cache of features."""
