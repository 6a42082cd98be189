"""Music source separation: a mixture into its stems, and how well that went."""
