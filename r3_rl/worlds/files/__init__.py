"""Prompts from files, and the training prompts that are written into one; their images are judged by scorers alone."""
