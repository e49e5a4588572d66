"""What all readers of YAML share: the fastest safe loader, and where a text is wrong."""

from typing import Any

import yaml

# The classes in C are not in every build of the library.
SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def not_yaml(error: yaml.YAMLError) -> str:
    """Say where a text is not YAML.

    Args:
        error: what the loader raised.

    Returns:
        The end of an error, which begins with "it is not YAML".
    """
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return "it is not YAML: it has characters that YAML does not allow"
    return f"it is not YAML at line {mark.line + 1}, column {mark.column + 1}: correct it there"
