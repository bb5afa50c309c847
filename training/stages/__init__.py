"""The stages of a run, each a function of the trainer."""
