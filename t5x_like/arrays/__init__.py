"""Trees of arrays: what a parameter is declared to be, named random keys, tree helpers."""
