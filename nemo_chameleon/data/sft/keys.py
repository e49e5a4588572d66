"""The keys of a line and of its messages: those that say nothing to train on, and all others.

A key that is neither understood nor known as metadata is refused by its name, because it may hold
a part of the text.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from nemo_chameleon.data.readers import MalformedError

# What public datasets say about a line, but not in it. Keys are compared in lower case. Titles,
# contexts, labels, rewards, weights and masks are not here: they are text, or decide the loss.
_METADATA = frozenset(
    "id idx index uid uuid guid _id __index_level_0__ row position sample_index line_number hash "
    "md5 sha1 sha256 prompt_hash conversation_hash hashed_ip parent_message parent_ids "
    "source sources src origin original_source data_source dataset dataset_name dataset_source "
    "subset split shard file filename file_name path repo url urls link links homepage license "
    "licence copyright citation author authors creator username user_name annotator annotators "
    "language languages lang lang_code locale country state region "
    "category categories subcategory main_category domain domains topic topics subtopic full_topic "
    "subject subjects field skill skills capability tag tags keyword keywords type kind task tasks "
    "task_name task_type task_category other_task_category intent intention knowledge level grade "
    "difficulty complexity quality quality_score input_quality score scores rating ratings rank "
    "upvotes downvotes likes votes views stars num_stars "
    "model models model_name generator generator_model generation_model teacher_model "
    "gen_input_configs generation_config temperature top_p seed version revision format "
    "created created_at create_time updated updated_at update_time modified date datetime year "
    "timestamp time duration "
    "num_turns n_turns turn turn_count turn_number num_tokens n_tokens token_count tokens_count "
    "total_tokens prompt_tokens completion_tokens length len char_count word_count "
    "toxic redacted nsfw moderation openai_moderation detoxify_moderation llama_guard_2 "
    "repeat_count min_neighbor_distance min_similar_uuid similarity perplexity ppl embedding "
    "avatarurl header used_in_training metadata meta meta_data metainfo extra extras extra_info "
    "additional_info info misc notes annotations".split()
)
_METADATA_ENDING = "_id"  # conversation_id, prompt_id and so on

_RENAMED = {
    "question": "prompt",
    "query": "prompt",
    "problem": "prompt",
    "answer": "completion",
    "response": "completion",
    "reply": "completion",
    "solution": "completion",
    "target": "completion",
    "conversation": "messages",
    "dialogue": "messages",
    "dialog": "messages",
    "chat": "messages",
    "chats": "messages",
    "turns": "messages",
    "content": "text",
    "document": "text",
    "texts": "text",
}
_FORMS = (
    "it needs messages, conversations, instruction and output, prompt and completion, input and "
    "output, or text"
)


class UnknownKeysError(MalformedError):
    """Raised for a line with keys that are not understood.

    Attributes:
        keys: the keys.
    """

    def __init__(self, keys: Sequence[str], of: str) -> None:
        """Name the keys.

        Args:
            keys: the keys.
            of: what has the keys, for instance "message".
        """
        self.keys = tuple(keys)
        quoted = ", ".join(map(repr, keys))
        which = f"key {quoted} of a {of} is" if len(keys) == 1 else f"keys {quoted} of a {of} are"
        super().__init__(f"the {which} not understood")


def present(value: Mapping[str, Any], ignored: Iterable[str]) -> dict[str, Any]:
    """Return the keys that say something: null counts as absent.

    Args:
        value: an object of a line.
        ignored: keys to leave out.

    Returns:
        The other keys with their values.
    """
    ignored = frozenset(ignored)
    return {key: said for key, said in value.items() if said is not None and key not in ignored}


def says_nothing(value: Any) -> bool:
    """Return whether a value is empty: null, an empty text, an empty list or an empty object.

    Args:
        value: the value.

    Returns:
        Whether it is.
    """
    return value is None or value in ("", [], {})


def unknown_keys(said: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """Return the keys that are neither understood nor metadata, and whose values say something.

    Args:
        said: the keys with their values.
        known: the keys that are understood.

    Returns:
        The keys.
    """
    known = frozenset(known)
    return [
        key
        for key, value in said.items()
        if not (key in known or _is_metadata(key) or says_nothing(value))
    ]


def require_known(said: Mapping[str, Any], known: Iterable[str], of: str) -> None:
    """Check that every key is understood, is metadata, or has an empty value.

    Args:
        said: the keys with their values.
        known: the keys that are understood.
        of: what has the keys; the error names it.

    Raises:
        UnknownKeysError: a key is not understood.
    """
    if unknown := unknown_keys(said, known):
        raise UnknownKeysError(unknown, of)


def _is_metadata(key: str) -> bool:
    key = key.lower()
    return key in _METADATA or key.endswith(_METADATA_ENDING)


def complaint(said: Mapping[str, Any]) -> str:
    """Say what a line of an unknown form should have been.

    Args:
        said: the keys of the line with their values.

    Returns:
        The fault and what is wanted.
    """
    if "chosen" in said or "rejected" in said:
        return (
            "preference data (chosen and rejected): a line has one answer to train on; write it as "
            "completion beside prompt, or as the last of messages"
        )
    if "input_ids" in said:
        return f"tokenised already (input_ids): a line is text, and {_FORMS}"
    renamed = {key: _RENAMED[key] for key in said if key in _RENAMED}
    if renamed:
        steps = ", ".join(f"{key!r} to {name!r}" for key, name in renamed.items())
        return f"unknown form: rename {steps}; {_FORMS}"
    names = ", ".join(repr(key) for key in said if not _is_metadata(key)) or "only metadata"
    return f"unknown form (it has {names}): {_FORMS}"


def ignored_keys_setting(keys: Sequence[str]) -> str:
    """Write the setting that leaves keys out, so that it works when it is typed.

    Args:
        keys: the keys.

    Returns:
        For instance "'data.ignored_keys=[title]'", in quotes for the shell.
    """
    setting = f"data.ignored_keys=[{', '.join(map(_typed, keys))}]"
    quoted = setting.replace("'", "'\\''")
    return f"'{quoted}'"


def _typed(key: str) -> str:
    plain = key.replace("_", "").replace("-", "").isalnum() and yaml.safe_load(key) == key
    if plain:
        return key
    # A configuration takes ${...} for a reference to another key, unless a backslash precedes it.
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", key)
    return yaml.dump(escaped, default_style='"', allow_unicode=True, width=float("inf")).strip()
