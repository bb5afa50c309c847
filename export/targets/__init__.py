"""The targets: the file formats of a graph, each with a function that writes it and one that runs it for the gate."""
