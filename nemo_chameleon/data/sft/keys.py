"""The keys of a line and of its messages: those that say nothing to train on, and all others.

A key that is neither understood nor known as metadata is refused by its name, because it may hold
a part of the text.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from nemo_chameleon.data.sft.deciding import deciding_metadata, is_flag, leaves_nothing_out
from nemo_chameleon.data.sft.unknown import UnknownKeysError

# What public datasets say about a line, but not in it, and first the plain ids. Keys are compared
# in lower case. Titles, contexts, labels, rewards, weights and masks are not here: they are text,
# or decide the loss.
_IDS = frozenset(
    "id idx index uid uuid guid _id __index_level_0__ row position sample_index line_number hash "
    "md5 sha1 sha256 prompt_hash conversation_hash hashed_ip parent_message parent_ids".split()
)
_ID_ENDING = "_id"  # conversation_id, prompt_id and so on
_METADATA = frozenset(
    "source sources src origin original_source data_source dataset dataset_name dataset_source "
    "subset split shard file filename file_name path repo url urls link links homepage license "
    "licence copyright citation author authors creator username user_name annotator annotators "
    "language languages lang lang_code locale country state region "
    "category categories subcategory main_category domain domains topic topics subtopic full_topic "
    "subject subjects field skill skills capability tag tags keyword keywords type kind tasks "
    "task_name task_type task_category other_task_category intent intention level grade "
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
    "avatarurl header metadata meta meta_data metainfo extra extras extra_info "
    "additional_info info misc notes annotations".split()
)


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
        if not (
            key in known
            or is_metadata(key)
            or says_nothing(value)
            or leaves_nothing_out(key, value)
        )
    ]


def require_known(said: Mapping[str, Any], known: Iterable[str], of: str) -> None:
    """Check that every key is understood, is metadata, or has a value that says nothing.

    Args:
        said: the keys with their values.
        known: the keys that are understood.
        of: what has the keys; the error names it.

    Raises:
        UnknownKeysError: a key is not understood, or one within metadata decides the loss.
    """
    unknown = unknown_keys(said, known)
    if found := [*unknown, *deciding_metadata(said)]:
        raise UnknownKeysError(found, of, [key for key in unknown if is_flag(said[key])])


def require_metadata(said: Mapping[str, Any], of: str) -> None:
    """Check that no key within metadata decides the loss.

    Args:
        said: the keys with their values.
        of: what has the keys; the error names it.

    Raises:
        UnknownKeysError: one does.
    """
    if found := deciding_metadata(said):
        raise UnknownKeysError(found, of)


def unread_keys(said: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """Return the metadata that say something; plain ids are not among them.

    Args:
        said: the keys with their values.
        known: the keys that are understood.

    Returns:
        The keys. A key within an object follows a dot, for instance metadata.system, if it has no
        name of metadata itself.
    """
    found = []
    for key, value in said.items():
        if key in known or says_nothing(value) or not is_metadata(key):
            continue
        if _names_id(key) and _is_id(value):
            continue
        inner = unknown_keys(value, ()) if isinstance(value, dict) else []
        found += [f"{key}.{name}" for name in inner] or [key]
    return found


@functools.lru_cache(maxsize=4096)
def is_metadata(key: str) -> bool:
    """Return whether a key has a name of metadata.

    Args:
        key: the key of a line or of a message.

    Returns:
        Whether it has.
    """
    return key.lower() in _METADATA or _names_id(key)


@functools.lru_cache(maxsize=4096)
def _names_id(key: str) -> bool:
    key = key.lower()
    return key in _IDS or key.endswith(_ID_ENDING)


def _is_id(value: Any) -> bool:
    """Return whether a value is one word, or a list of such values."""
    values = value if isinstance(value, list) else [value]
    return all(not isinstance(one, dict | list) and len(str(one).split()) < 2 for one in values)
