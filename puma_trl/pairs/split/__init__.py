"""Train and evaluation data without leaks between them."""
