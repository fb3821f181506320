"""Text in and out of the policy: observations to messages, generations to actions, dynamics questions."""
