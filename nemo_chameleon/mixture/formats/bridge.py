"""The blend in a configuration of Megatron-Bridge: dataset.blend, or blend_per_split."""

from nemo_chameleon.mixture.formats.blend import Blend, MixtureFormat, entries_of
from nemo_chameleon.mixture.formats.megatron import UNWEIGHTED
from nemo_chameleon.mixture.formats.shapes import read_blend
from nemo_chameleon.mixture.formats.text import commented_yaml, found_blend, parse_yaml
from nemo_chameleon.mixture.mixture import Mixture
from nemo_chameleon.utils.errors import UserError

_MEANING = (
    "prefixes, then weights, for Megatron-Bridge's dataset.blend. A weight is the share of "
    "training samples. The weights apply to validation too."
)


def _write(mixture: Mixture) -> str:
    entries = entries_of(mixture)
    blend = [[path for path, _ in entries], [weight for _, weight in entries]]
    return commented_yaml({"dataset": {"blend": blend}}, _MEANING)


def _read(text: str) -> Blend:
    body = parse_yaml(text)
    blend = found_blend(body, ("blend", "blend_per_split", "data_paths", "data_path"))
    if blend is None:
        raise UserError("it has no blend: put [[PREFIX, ...], [WEIGHT, ...]] at dataset.blend")
    key, value = blend
    if not key.endswith("blend_per_split") or isinstance(value, dict):
        return read_blend(value, UNWEIGHTED)
    if not (isinstance(value, list) and len(value) == 3):
        raise UserError(f"{key} must have three blends, those of training, validation and test")
    splits = dict(zip(("train", "validation", "test"), value, strict=True))
    return read_blend(splits, UNWEIGHTED)


BRIDGE = MixtureFormat(_MEANING, _write, _read)
