"""Scoring of many pictures into one Parquet file."""
