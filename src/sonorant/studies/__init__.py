"""Small experiments that reproduce what papers say of optimisers, with pictures."""
