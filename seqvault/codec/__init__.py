"""The codec: bit-packing, checksums, blocks and records."""
