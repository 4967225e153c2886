"""Answers that a model itself writes, those that agree with the gold answer kept."""
