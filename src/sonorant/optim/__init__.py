"""Optimisers and weight averaging."""
