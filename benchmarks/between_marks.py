"""Replaces what stands between two marks of a page."""


def between_marks(page: str, start: str, end: str, part: str) -> str:
    """The page with ``part`` between the marks, each of which it holds once.

    >>> between_marks("a <b>old</b> c", "<b>", "</b>", "new")
    'a <b>new</b> c'
    """
    before, rest = page.split(start)
    _, after = rest.split(end)
    return before + start + part + end + after
