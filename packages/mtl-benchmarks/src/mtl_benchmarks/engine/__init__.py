"""What one run does: steps, evaluations, several processes, what is recorded and who may watch."""
