"""Training: its section of the recipe, the optimiser, the loop and the run."""
