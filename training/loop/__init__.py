"""The trainer, its plan, its checkpoints."""
