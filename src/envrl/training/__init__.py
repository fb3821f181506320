"""Training: the Lightning module that turns rows into one loss, and what happens around it."""
