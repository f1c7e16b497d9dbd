"""One figure a file: `draw(frame)` draws it and `describe(frame)` says in words what it shows."""
