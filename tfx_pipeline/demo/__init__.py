"""The whole way in one command, from events to a rank answer."""
