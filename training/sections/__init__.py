"""The sections of a run's configuration: every key with its default, range and meaning."""
