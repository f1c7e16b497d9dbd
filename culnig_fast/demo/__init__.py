"""The embedded model, its invented world, and the run that shows what the engine does."""
