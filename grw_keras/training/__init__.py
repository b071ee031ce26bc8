"""Training: recipes, checkpoints, and the loop between them."""
