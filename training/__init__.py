"""Train a run from a data set: loading, losses, stages, projection, reports."""
