"""What several methods have in common: the bases they inherit from, their facts, and the checks of their settings."""
