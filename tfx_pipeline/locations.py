"""What the command line takes for folders of this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from components.uris import scheme_of


def local_folder(text: str) -> Path:
    """An option that must be a folder of this machine or one that is mounted.

    Raises:
        ArgumentTypeError: It is a URI; a folder of that odd name is never made.
    """
    if scheme_of(text) is not None:
        raise argparse.ArgumentTypeError(
            f"{text} is a URI, and a folder of this machine, or one mounted on it, is needed here: "
            "datasets may be URIs, and models are pushed to one with the config's push_to"
        )
    return Path(text)


def store_address(text: str) -> str:
    """A store's folder or the addresses of its servers.

    Raises:
        ArgumentTypeError: It is a URI.
    """
    if scheme_of(text) is not None:
        raise argparse.ArgumentTypeError(
            f"{text} is a URI; give a store's folder, or host:port of its servers"
        )
    return text
