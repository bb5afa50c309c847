"""A run: its folder, and the records that the folder holds."""
