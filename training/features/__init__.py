"""Backbones: which parts learn, in which precision, and which features are kept."""
