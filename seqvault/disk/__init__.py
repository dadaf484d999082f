"""Files of a store: the file layer, segments, the log, the manifest, item files."""
