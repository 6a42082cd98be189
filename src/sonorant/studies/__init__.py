"""Small experiments that reproduce what papers say of optimisers and of few bits per weight."""
