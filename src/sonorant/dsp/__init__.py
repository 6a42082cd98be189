"""Signal processing that models and losses share: differentiable, equal to the published forms."""
