"""Manifests, corpora that anyone can fetch, and training datasets."""
