"""State dictionaries of PyTorch that load into another instance of the same layer."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

_PARAMETERS = "_torch_params."
_NUMBER = re.compile(r"_(\d+)$")


class PortableState:
    """Base of layers whose PyTorch state dictionary fits any instance made the same way.

    Keras names a layer's parameters by the path of its variables, in which the layer's own name and
    the numbers of automatic names (``laser_ranker_1``) differ from instance to instance. Loading
    matches them by what remains. Other backends never call this.
    """

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        # A torch.nn.Module calls this on the outer module first, with a copy of the dictionary that
        # the modules inside then read.
        saved = [key for key in state_dict if key.startswith(prefix) and _PARAMETERS in key]
        own = [prefix + key for key in self.state_dict() if _PARAMETERS in key]  # type: ignore[attr-defined]
        moved = {key: state_dict.pop(key) for key in saved}
        names = renamed(saved, own)
        state_dict.update({names.get(key, key): value for key, value in moved.items()})
        super()._load_from_state_dict(state_dict, prefix, *arguments)  # type: ignore[misc]


def renamed(saved: Iterable[str], own: Iterable[str]) -> dict[str, str]:
    """Which of the ``own`` keys each of the ``saved`` ones is, where that is certain.

    >>> renamed(["_torch_params.a_1/norm_0/beta"], ["_torch_params.b/norm_0/beta"])
    {'_torch_params.a_1/norm_0/beta': '_torch_params.b/norm_0/beta'}
    """
    of_saved, of_own = _by_structure(saved), _by_structure(own)
    return {
        key: mine
        for structure, keys in of_saved.items()
        if len(keys) == len(of_own.get(structure, ()))
        for key, mine in zip(keys, of_own[structure], strict=True)
    }


def _by_structure(keys: Iterable[str]) -> dict[tuple[str, ...], list[str]]:
    """Keys by module and path less names of instances, in the order of their numbers."""
    groups: dict[tuple[str, ...], list[tuple[list[int], str]]] = defaultdict(list)
    for key in keys:
        module, _, path = key.rpartition(_PARAMETERS)
        _, *scopes = path.split("/")
        found = [_NUMBER.search(part) for part in path.split("/")]
        numbers = [int(match[1]) if match else -1 for match in found]
        structure = (module, *(_NUMBER.sub("", part) for part in scopes))
        groups[structure].append((numbers, key))
    return {group: [key for _, key in sorted(members)] for group, members in groups.items()}
