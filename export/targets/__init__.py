"""The targets: the file formats of a graph, each with a writer and a runtime for the parity gate."""
