"""The training engine; it knows no system."""
