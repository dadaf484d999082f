"""``laser-pipeline compare``: systems beside one another on one joined log, over seeds."""
