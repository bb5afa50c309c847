"""Predictions for whole folders of pictures, as Parquet."""
