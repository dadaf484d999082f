"""Chooses the cheaper of the equivalent execution orders of the segmented attention."""

# Stands in for a history length that is unknown when the order is chosen.
_TYPICAL_LENGTH = 1000


def cheaper_orders(
    candidates: int | None,
    length: int | None,
    width: int,
    *,
    num_heads: int,
    key_width: int,
    value_width: int,
    segment_size: int,
) -> tuple[bool, bool]:
    """Whether keys, and whether values, are better absorbed than formed.

    Each is decided by its multiply-accumulates per request. Forming them is done once per request;
    absorbing them is done per candidate. With an unknown number of candidates neither is absorbed.

    Args:
        candidates: N, or None when unknown.
        length: L, or None when unknown.
        width: d.
        num_heads: Heads.
        key_width: Width of the keys of all heads together.
        value_width: Width of the values of all heads together.
        segment_size: w.

    >>> sizes = {"num_heads": 2, "key_width": 32, "value_width": 128, "segment_size": 10}
    >>> [cheaper_orders(n, 1000, 128, **sizes) for n in (1, 10, 50)]
    [(True, True), (True, False), (False, False)]
    """
    if candidates is None:
        return False, False
    length = _TYPICAL_LENGTH if length is None else max(length, 1)
    segments = -(-length // segment_size)
    shared_keys = length * width * key_width + candidates * length * key_width
    absorbed_keys = candidates * (width * key_width + num_heads * length * width)
    shared_values = length * width * value_width + candidates * length * value_width
    absorbed_values = candidates * width * (num_heads * length + segments * value_width)
    return absorbed_keys < shared_keys, absorbed_values < shared_values
