"""Fault injection and the crash, kill and lifetime tests of SeqVault."""
