"""Recording of routing and attention from Mixture-of-Experts models that run in transformers.

Needs the extra `capture` (PyTorch and transformers), which nothing else in moesim needs.
"""
