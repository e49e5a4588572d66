"""What the key of a line or of a message is about: the one table of all words that keys have.

The name of a key as a whole decides first, then the words in it. The value decides where one name
is used for different things.
"""

import functools
import re
from enum import Enum
from typing import Any

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


class Meaning(Enum):
    """What a key is about."""

    ID = "a plain id, which says nothing"
    METADATA = "something about a line, but not in it"
    SETTING = "how an answer was generated, which is metadata too"
    LOSS = "what is to be trained on"
    LEAVING_OUT = "what is not to be trained on, if it is on"
    SPEAKER = "who speaks"
    CALL = "tools and calls of them"
    MEDIA = "a picture, a film or a sound"
    MEASURE = "a number about a text"
    TEXT = "a part of the question or of the answer"
    UNKNOWN = "something that its name does not tell"


# Names of keys in lower case, as public datasets have them. Titles, rewards and so on are not here:
# they may be text, or decide the loss.
_NAMES = {
    Meaning.ID: (
        "id idx index uid uuid guid _id __index_level_0__ row position sample_index line_number "
        "hash md5 sha1 sha256 hashed_ip parent_message parent_ids"
    ),
    Meaning.METADATA: (
        "source sources src origin original_source data_source dataset dataset_name dataset_source "
        "subset split data_split dataset_split shard file filename file_name path "
        "repo url urls link links homepage license licence copyright citation "
        "author authors creator username user_name annotator annotators "
        "language languages language_code lang lang_code locale country state region "
        "category categories subcategory main_category domain domains topic topics subtopic "
        "full_topic subject subjects field skill skills capability tag tags keyword keywords type "
        "kind tasks task_name task_type task_source task_category "
        "template_type annotation_type other_task_category intent intention level "
        "grade difficulty complexity quality quality_score input_quality score scores rating "
        "ratings rank upvotes downvotes likes votes views stars num_stars "
        "version revision format "
        "created created_at create_time updated updated_at update_time modified date datetime year "
        "timestamp time duration "
        "num_turns n_turns turn turn_count turn_number num_tokens n_tokens token_count "
        "tokens_count total_tokens prompt_tokens completion_tokens length len char_count "
        "word_count toxic redacted nsfw moderation openai_moderation detoxify_moderation "
        "llama_guard_2 repeat_count min_neighbor_distance min_similar_uuid similarity perplexity "
        "ppl embedding avatarurl header metadata meta meta_data metainfo extra extras extra_info "
        "additional_info info misc notes annotations"
    ),
    Meaning.SETTING: (
        "model models model_name generator generator_model generation_model teacher_model "
        "gen_input_configs generation_config temperature top_p seed tool_choice parallel_tool_calls"
    ),
}
# Words within keys: the first meaning that has one of them is the key's.
_WORDS = {
    Meaning.LOSS: "weight weights label labels loss losses train training trainable trained",
    Meaning.LEAVING_OUT: "mask masks masked ignore ignored skip skipped exclude excluded",
    Meaning.SPEAKER: "role roles speaker speakers sender from",
    Meaning.CALL: "function functions tool tools call calls api apis arguments parameters args",
    Meaning.MEDIA: (
        "image images img imgs picture pictures photo photos screenshot screenshots pixel pixels "
        "video videos audio audios sound sounds waveform media attachment attachments"
    ),
    Meaning.MEASURE: "length len count num tokens chars score scores",
    Meaning.TEXT: (
        "prompt prompts question questions query queries problem problems instruction instructions "
        "system sys input inputs context contexts passage passages paragraph paragraphs document "
        "documents doc docs article articles story stories description definition definitions "
        "choice choices option options candidate candidates answer answers response responses "
        "reply replies solution solutions target targets output outputs completion completions "
        "text texts content contents body message messages conversation conversations dialogue "
        "dialogues dialog dialogs chat chats turns history summary summaries highlights abstract "
        "rationale rationales explanation explanations reason reasons reasoning thinking thought "
        "thoughts trajectory trajectories cot hypothesis premise persona personas profile "
        "background knowledge evidence fact facts schema schemas sql code snippet snippets table "
        "tables example examples demonstration demonstrations hint hints task rule rules refusal "
        "reference references test tests guidelines sentence sentences equation formula expression "
        "statement statements claim claims caption captions transcript transcription lyrics poem "
        "entity entities phrase phrases html xml markdown email review reviews headline plot "
        "scenario situation goal plan steps observation observations memory scratchpad proof "
        "theorem docstring diff patch comment comments original translation translations paraphrase"
    ),
}
_OF_NAME = {name: meaning for meaning, names in _NAMES.items() for name in names.split()}
_OF_WORD = {word: meaning for meaning, words in _WORDS.items() for word in words.split()}
_ORDER = list(_WORDS)
_ID_ENDINGS = ("_id", "_hash")  # conversation_id, prompt_hash and so on
_ASKING = frozenset("is has use uses enable enabled do does should was".split())
_YES_AND_NO = frozenset("true false yes no".split())
_LABELS = frozenset("label labels".split())


def words_of(key: str) -> list[str]:
    """Divide a key into its words.

    Args:
        key: for instance lossMask or loss_mask.

    Returns:
        The words in lower case.
    """
    return [word.lower() for word in _WORD.findall(key)]


def meaning_of(key: str, value: Any = None) -> Meaning:
    """Tell what a key is about.

    Args:
        key: the key of a line or of a message.
        value: its value. A label in words is a text; true and false are none, and neither is the
            yes or no of a key such as is_answer, which may say anything.

    Returns:
        What it is about.
    """
    meaning = _meaning_of_name(key)
    if meaning is Meaning.LOSS and _LABELS & set(words_of(key)) and _is_in_words(value):
        return Meaning.TEXT
    if meaning is Meaning.TEXT and isinstance(value, bool):
        return Meaning.UNKNOWN
    asks = meaning in (Meaning.TEXT, Meaning.MEDIA) and is_flag(value)
    return Meaning.UNKNOWN if asks and words_of(key)[0] in _ASKING else meaning


@functools.lru_cache(maxsize=4096)
def _meaning_of_name(key: str) -> Meaning:
    lower = key.lower()
    if named := _OF_NAME.get(lower):
        return named
    found = {_OF_WORD[word] for word in words_of(key) if word in _OF_WORD}
    if lower.endswith(_ID_ENDINGS) and Meaning.MEDIA not in found:
        return Meaning.ID
    return min(found, key=_ORDER.index, default=Meaning.UNKNOWN)


def is_metadata(key: str) -> bool:
    """Return whether a key is about a line, but not a part of what it says.

    Args:
        key: the key of a line or of a message.

    Returns:
        Whether it is.
    """
    return meaning_of(key) in (Meaning.ID, Meaning.METADATA, Meaning.SETTING)


def decides_loss(key: str, value: Any) -> bool:
    """Return whether a key may say what is trained on.

    Args:
        key: the key of a line or of a message.
        value: its value.

    Returns:
        Whether it may.
    """
    return meaning_of(key, value) in (Meaning.LOSS, Meaning.LEAVING_OUT)


def is_flag(value: Any) -> bool:
    """Return whether a value says yes or no, and so may say whether to train.

    Args:
        value: the value of a key that is not understood.

    Returns:
        Whether it is true, false, 0, 1, one of the words for these, or a list of such values.
    """
    if isinstance(value, list):
        return bool(value) and all(map(is_flag, value))
    if isinstance(value, str):
        return value.strip().lower() in _YES_AND_NO
    return isinstance(value, bool | int | float) and value in (0, 1)


def _is_in_words(value: Any) -> bool:
    """Return whether a value is a text that says more than yes or no, or a list of texts."""
    if isinstance(value, list):
        return bool(value) and all(map(_is_in_words, value))
    return isinstance(value, str) and not is_flag(value) and any(map(str.isalpha, value))
