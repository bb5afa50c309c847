"""The deployable folder: manifest, graph, prototype pictures; and ensembles of such folders."""
