"""Rollouts: the loop between environment, prompt and sampler, and what it lived through as token rows."""
