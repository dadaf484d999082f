"""Prometheus' text format."""

from collections.abc import Iterable, Iterator, Mapping


def family(
    name: str, kind: str, meaning: str, samples: Iterable[tuple[Mapping[str, object], float]]
) -> Iterator[str]:
    """The lines of one metric.

    Args:
        name: Of the metric.
        kind: ``counter`` or ``gauge``; the lines of a histogram are made elsewhere.
        meaning: One sentence, shown to whoever looks the metric up.
        samples: Labels and value of each.

    Example:
        >>> for line in family("lag", "gauge", "Messages to come.", [({"topic": 'a"b'}, 3)]):
        ...     print(line)
        # HELP lag Messages to come.
        # TYPE lag gauge
        lag{topic="a\\"b"} 3
    """
    yield from header(name, kind, meaning)
    for labels, value in samples:
        yield f"{name}{_labels(labels)} {value}"


def header(name: str, kind: str, meaning: str) -> Iterator[str]:
    """The two lines that stand before a metric's values."""
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"


def _labels(labels: Mapping[str, object]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items()) + "}"


def _escaped(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
