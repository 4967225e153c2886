"""Foreign checkpoints, assembled models and adapters → native checkpoints."""
