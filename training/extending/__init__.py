"""Change the classes of a finished run without training: add, remove, rename, merge."""
