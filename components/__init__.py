"""TFX components of LASER: the SeqVault ExampleGen and the serving check."""
