"""Read YAML whose mappings name each key once: PyYAML keeps the last one of several, in silence."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode

_MERGE = "tag:yaml.org,2002:merge"


class _UniqueKeys(yaml.constructor.BaseConstructor):
    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]
        places = [key.start_mark for key, _ in node.value if key.tag != _MERGE]
        for number, (key, place) in enumerate(zip(keys, places, strict=True)):
            if key in keys[:number]:
                raise ConstructorError(None, None, f"the key {key!r} stands more than once", place)
        return super().construct_mapping(node, deep)


class _Texts(_UniqueKeys, yaml.BaseLoader):
    """Every scalar as the text that the file has."""


class _Values(_UniqueKeys, yaml.SafeLoader):
    """Scalars of plain types."""


def parse_yaml(text: str, *, as_texts: bool) -> Any:
    """Return what YAML holds.

    Args:
        text: YAML.
        as_texts: Whether each scalar stays the text that it is, such as ``no`` and ``1e-3``.

    Raises:
        yaml.YAMLError: It is not YAML, or a mapping names a key more than once.
    """
    return yaml.load(text, Loader=_Texts if as_texts else _Values)
