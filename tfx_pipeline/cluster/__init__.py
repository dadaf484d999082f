"""A training cluster under supervision: its roles, who restarts them, and what they say."""
