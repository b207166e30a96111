"""What runs: models, steps, operators, requests, routing and attention traces."""
