"""Training from recipes over transformers' Trainer: `mega train recipe.yaml`."""
