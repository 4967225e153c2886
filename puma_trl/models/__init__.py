"""Model families, their parts, loading them, adapters on them."""
