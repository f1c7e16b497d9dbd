"""Tables of results: `figures` computes their cells, `table` holds them, `writing` turns them into files."""
