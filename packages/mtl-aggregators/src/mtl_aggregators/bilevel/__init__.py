"""Task weights trained on what a step of the optimiser did to the losses."""
