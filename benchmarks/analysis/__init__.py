"""What trained models do inside, and what their results say about block size, cost and gate norms."""
