"""Reads a YAML file of settings: rejects duplicate keys and accepts ``1e-3`` as a number."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from tfx_pipeline.errors import SettingsError


class _Loader(yaml.SafeLoader):
    """Refuses an entry that is given twice, and reads ``1e-3`` as the number it is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the entry {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML reads, wants a dot and a sign in such numbers; YAML 1.2 does not.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The entries of a YAML file; none for an empty one.

    Raises:
        SettingsError: Unreadable, not YAML, an entry given twice, or no mapping of entries.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read ({error})") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"{path} is not valid YAML: {reason}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold entries like `name: ...`; received {content!r}")
    return content
