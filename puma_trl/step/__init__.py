"""The pair step: teacher without gradient, student with it, one loss without logits."""
