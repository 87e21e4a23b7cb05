"""Built-in scorers, one file each: exactly what a user would write."""
