"""Splits, pictures, augmentation and batches."""
