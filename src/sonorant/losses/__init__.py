"""Training losses as plain functions, the loss balancer and the discriminators."""
