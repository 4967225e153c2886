"""From a command to a run: the launcher, the memory plan, and recipes written for a model, data and GPU."""
