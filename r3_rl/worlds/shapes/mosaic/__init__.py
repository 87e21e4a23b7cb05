"""The mosaic world: the shapes world on a larger board, with sizes, more objects and harder prompts."""
