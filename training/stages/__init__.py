"""The stages of a run. Each is a function of the trainer."""
