"""A path as a user gave it, which errors begin with and whose form their advice has."""

import json
import re
import shlex
from typing import NamedTuple

_PLAIN = re.compile(r"[\w./][\w./=*?+@ -]*(?<! )")  # text to YAML within a list


class Given(NamedTuple):
    """A path of a configuration or of a command line.

    Attributes:
        path: the path, or a glob.
        key: the key of the configuration that has it; empty on a command line.
    """

    path: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.key}={self.path}" if self.key else self.path

    def instead(self, *paths: str) -> str:
        """Return what to type in place of it.

        Args:
            paths: one or more paths, or a glob.

        Returns:
            For instance "data.domains.a.path=b" or, on a command line, "b c"; quoted where a shell
            would read it otherwise.
        """
        if not self.key:
            return shlex.join(paths)
        if len(paths) == 1:
            begins_plainly = paths[0][:1] not in ('"', "'", "[", "{")
            value = paths[0] if begins_plainly else _in_quotes(paths[0])
        else:
            items = (path if _PLAIN.fullmatch(path) else _in_quotes(path) for path in paths)
            value = f"[{','.join(items)}]"
        return shlex.quote(f"{self.key}={value}")


def _in_quotes(path: str) -> str:
    return json.dumps(path, ensure_ascii=False)
