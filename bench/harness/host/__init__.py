"""How long the host takes to ask for a layer's work."""
