"""A file layer with faults and the crash run: how SeqVault is tested against its disk."""
