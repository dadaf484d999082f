"""``laser-pipeline compare``: compares systems on one joined log over several seeds."""
