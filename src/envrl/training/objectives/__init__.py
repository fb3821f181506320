"""Auxiliary objectives: each one file that says what it learns from, by which loss, and what it reports."""
