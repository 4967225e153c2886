"""`pairs build`: question + diagram + answer → pairs."""
