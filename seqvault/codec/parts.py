"""Places of the parts in the bundles that ``find_rows`` and ``read_rows`` take."""

# of a store: its index and open segments, the memtable's chains and columns
(
    TABLE, KEYS, LATEST, PREVIOUS, SEGMENT, OFFSET, LENGTH, COUNT, ARRIVALS,
    NUMBERS, DESCRIPTORS, SCHEMAS, HEADS, LINKS, MEM_TIMES, MEM_ADDRESSES,
) = range(16)  # fmt: skip
# of a choice of fields
COLUMNS_OF, SIZES, DEFAULTS, MEM_COLUMNS, COLUMNS_IN = range(5)
# of the room that a thread keeps: int64 [B, 3] rows, int64 [R, 5] records, bytes
ROWS, RECORDS, BUFFER = range(3)
ROW_WIDTH, RECORD_WIDTH = 3, 5
