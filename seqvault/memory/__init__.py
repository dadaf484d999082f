"""What an open store keeps in memory: index, memtable, items, the state of the store."""
