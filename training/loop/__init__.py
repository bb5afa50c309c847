"""The trainer, its plan, its epochs and its checkpoints."""
