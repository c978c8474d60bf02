"""What a run is: its parts made by name, and its whole configuration as plain data."""
