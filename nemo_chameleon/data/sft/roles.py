"""The roles of messages, by all the names that public datasets have for them."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from nemo_chameleon.data.readers import MalformedError

CALL = "function_call"
"""ShareGPT's role of a turn that calls a tool, with the call as its value."""
ROLES = {
    name: role
    for role, names in {
        "system": "system",
        "user": "user human prompter",
        "assistant": "assistant ai gpt chatgpt bard bing bot model function_call",
        "tool": "tool observation function tool_response function_response",
    }.items()
    for name in names.split()
}
"""The role that each name means, in lower case."""
# What OpenAI and templates call them; a template may know several names of tools.
_NAMES = ("system", "user", "assistant", *(name for name in ROLES if ROLES[name] == "tool"))
_ANSWERING = [name for name in ROLES if ROLES[name] == "assistant"]


def has_other_name(role: Any) -> bool:
    """Return whether a role is human, gpt, User and so on, which templates do not know.

    Args:
        role: the role of a message.

    Returns:
        Whether it is.
    """
    return isinstance(role, str) and role not in _NAMES and role.lower() in ROLES


def is_user(role: Any) -> bool:
    """Return whether a name of a role means the user.

    Args:
        role: the name.

    Returns:
        Whether it does.
    """
    return isinstance(role, str) and ROLES.get(role.lower()) == "user"


def unknown_role(role: str) -> MalformedError:
    """Return the error about a role that neither this package nor the chat template knows.

    Args:
        role: the role of a message.

    Returns:
        The error, with what to write instead.
    """
    fault = f"the role {role!r} of a message is not known"
    if meant := get_close_matches(role.lower(), _ANSWERING, 1, 0.8):
        return MalformedError(f"{fault}: write {meant[0]!r}")
    return MalformedError(
        f"{fault}, and the chat template does not name it: write 'assistant' for what is to be "
        "trained on, and 'user', 'system' or 'tool' for other messages"
    )


def without_role(message: Mapping[str, Any]) -> MalformedError:
    """Return the error about a message without a role, such as one with LangChain's type.

    Args:
        message: the message.

    Returns:
        The error, with the key to rename if one has a role as its value.
    """
    for key, said in message.items():
        if key != "content" and isinstance(said, str) and said.lower() in ROLES:
            return MalformedError(f"a message has no role: rename {key!r} to 'role'")
    return MalformedError(
        "a message has no role: write who speaks as 'role', and what is said as 'content'"
        f"{beside_role(message)}"
    )


def beside_role(message: Mapping[str, Any]) -> str:
    """Name what a message has beside its role.

    Args:
        message: the message.

    Returns:
        A remark in parentheses; empty if the message has nothing else.
    """
    keys = ", ".join(repr(key) for key in message if key != "role")
    return f" (the message has {keys})" if keys else ""
