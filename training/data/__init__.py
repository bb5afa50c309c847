"""Pictures, batches and their order."""
