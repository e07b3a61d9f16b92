"""Search spaces: the experiment's configuration tree with Ray Tune domains at the leaves (YAML, shipped as data)."""
