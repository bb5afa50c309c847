"""The results of a run: metrics, figures, pictures of prototypes, the report."""
