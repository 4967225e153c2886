"""What a run leaves beside the weights: provenance, model card, curves, the push."""
