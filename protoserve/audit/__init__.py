"""Measures whether a bundle's evidence is true: additive, necessary, local, on the object, and sparse."""
