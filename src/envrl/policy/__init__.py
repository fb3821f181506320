"""The policy: model with adapters, chat markup, sampler, and the embedded checkpoint."""
