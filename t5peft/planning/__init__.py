"""Plan a run before it starts: published geometries, and the memory that a training step takes."""
