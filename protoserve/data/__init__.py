"""Data sets as folders, tables and IDX files."""
