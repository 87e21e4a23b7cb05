"""The embedded world: coloured shapes on a grid, with prompts, pictures, words and an exact inspector."""
