"""TRL's trainer with the pair step, its metrics and checkpoints."""
