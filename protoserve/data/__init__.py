"""Data sets: labelled images in class folders, listed in a table, or held in IDX files."""
