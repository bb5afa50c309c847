"""A run → a bundle: the fused graph, its targets, the parity gate."""
