"""The blends in configurations of NeMo 1 and NeMo 2.

NeMo 2's data modules have `paths`, NeMo 1's pretraining has `model.data.data_prefix`, and NeMo 1's
finetuning has `file_names` with `concat_sampling_probabilities` under `train_ds`.
"""

from nemo_chameleon.mixture.formats.blend import Blend, MixtureFormat
from nemo_chameleon.mixture.formats.megatron import UNWEIGHTED, pairs_of
from nemo_chameleon.mixture.formats.shapes import read_blend
from nemo_chameleon.mixture.formats.text import commented_yaml, found, found_blend, parse_yaml
from nemo_chameleon.mixture.mixture import Mixture
from nemo_chameleon.utils.errors import UserError

_MEANING = (
    "weights and prefixes for NeMo 2's PreTrainingDataModule(paths=...) and, as data_prefix, "
    "for NeMo 1. A weight is the share of training samples. The weights apply to validation "
    "too."
)


def _write(mixture: Mixture) -> str:
    return commented_yaml({"paths": pairs_of(mixture)}, _MEANING)


def _read(text: str) -> Blend:
    body = parse_yaml(text)
    blend = found_blend(body, ("paths", "data_prefix"))
    if blend is not None:
        return read_blend(blend[1], UNWEIGHTED)
    if isinstance(body, list) or (isinstance(body, dict) and "train" in body):
        return read_blend(body, UNWEIGHTED)
    finetuning = found(body, ("train_ds",))
    if len(finetuning) == 1 and isinstance(own := next(iter(finetuning.values())), dict):
        files, shares = own.get("file_names"), own.get("concat_sampling_probabilities")
        if isinstance(files, list) and isinstance(shares, list | None):
            return read_blend([files, shares], "NeMo refuses several files without probabilities")
    raise UserError(
        "it has no list of weights and prefixes: put it under the key paths or data_prefix"
    )


NEMO = MixtureFormat(_MEANING, _write, _read)
