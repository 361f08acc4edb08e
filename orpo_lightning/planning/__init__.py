"""How much memory a training step takes, and how long it lasts, before a GPU is at hand."""
