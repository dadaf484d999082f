"""The demo: from events to a served rank request in one command."""
