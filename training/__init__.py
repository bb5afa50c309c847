"""A data set → a run: loading, losses, stages, projection, reports."""
