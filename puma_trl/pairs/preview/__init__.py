"""`pairs preview`: a page that shows both sides of each pair."""
