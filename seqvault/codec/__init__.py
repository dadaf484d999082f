"""How events become bytes: bit-packing, checksums, records."""
