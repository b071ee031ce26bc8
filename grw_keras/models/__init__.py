"""Video classifiers built from a `ModelSpec`."""
