"""embedding/registry.py: a model that exists already embeds, megatron-core's or Hugging Face's."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from megatron.core.datasets.indexed_dataset import IndexedDataset

from benchmarks.gpt2 import megatron_state
from nemo_chameleon import Mixture, provider
from nemo_chameleon.config import load_config
from nemo_chameleon.config.schema import Config
from nemo_chameleon.data.indexed import open_indexed
from nemo_chameleon.data.tokenize import write_dataset
from nemo_chameleon.data.tokenizer import find_tokenizer, load_tokenizer, train_tokenizer
from nemo_chameleon.distributed.layout import model_parallel
from nemo_chameleon.embedding import reencoding
from nemo_chameleon.method.embeddings import ShardedEmbedding
from nemo_chameleon.mixture.edit import ComputedMixture
from nemo_chameleon.mixture.embeddings_file import load_embeddings
from nemo_chameleon.models import checkpoint, pretrained
from nemo_chameleon.models.gpt import build_gpt
from nemo_chameleon.provider import plan
from nemo_chameleon.provider.new_domains import embed_new
from nemo_chameleon.train import run
from nemo_chameleon.utils import files
from nemo_chameleon.utils.errors import UserError
from project import write_config

HIDDEN, HEADS, LAYERS, LENGTH = 32, 4, 4, 32


@pytest.fixture(scope="module")
def gpt2(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a GPT-2 of Hugging Face's with random weights, and its tokenizer."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    lm = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=512,
            n_positions=LENGTH,
            n_embd=HIDDEN,
            n_layer=LAYERS,
            n_head=HEADS,
            activation_function="gelu",
            initializer_range=0.2,
        )
    )
    lm.save_pretrained(folder)
    tokenizers: Any = transformers.PreTrainedTokenizerFast  # transformers gives it no types
    tokenizers(tokenizer_file=str(corpus / "tokenizer.json")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def converted(
    gpt2: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory, alone: None
) -> Path:
    """Return the same weights as a megatron-core checkpoint that does not say what it is of."""
    folder = tmp_path_factory.mktemp("megatron")
    config = load_config(write_config(corpus, folder))
    lm = transformers.GPT2LMHeadModel.from_pretrained(gpt2)
    with model_parallel(config.proxy.parallel, seed=0):
        gpt = build_gpt(config.proxy, 512, for_training=False)
        state = megatron_state(lm)
        missing, unexpected = gpt.load_state_dict(state, strict=False)
        assert not unexpected
        assert all("_extra_state" in name for name in missing)
        path = checkpoint.save(folder, 1, {}, gpt, None, None)
    for own in ("state.json", "manifest.json"):
        (path / own).unlink()
    return path


@pytest.fixture
def config(config: Config) -> Config:
    """Return the configuration of a run whose proxy is that GPT-2."""
    config.proxy.model.num_layers = LAYERS
    config.chameleon.samples = 48
    return config


def embedded(config: Config, **proxy: str) -> tuple[Mixture, dict[str, ShardedEmbedding]]:
    """Return the mixture of a run with an existing proxy, and its embeddings."""
    for key, value in proxy.items():
        setattr(config.proxy, key, value)
    config.chameleon.file = f"{config.output}/{'-'.join(proxy)}.json"
    mixture = provider.resolve_mixture(config)
    (embeddings,) = load_embeddings(Path(config.chameleon.file).with_suffix(".safetensors"))
    config.proxy.load = config.proxy.hf = None
    return mixture, embeddings


@pytest.mark.usefixtures("alone")
def test_one_gpt2_in_both_forms(config: Config, gpt2: Path, converted: Path) -> None:
    """Both forms of one model give the embeddings that transformers computes, to 1e-4.

    They therefore give the same weights.
    """
    theirs, from_hf = embedded(config, hf=str(gpt2))
    ours, from_megatron = embedded(config, load=str(converted))
    lm = transformers.GPT2LMHeadModel.from_pretrained(gpt2)
    for name, domain in open_indexed(config.data.domains, config.data.split).items():
        states = []
        for index in range(48):
            drawn = domain.window(index, LENGTH, config.chameleon.seed, cross_documents=True)
            window = torch.from_numpy(drawn.tokens)[None]
            with torch.no_grad():
                states.append(lm(window, output_hidden_states=True).hidden_states[LAYERS // 2][0])
        tokens = torch.cat(states)
        expected = (tokens / tokens.square().mean(1, keepdim=True).sqrt()).mean(0)
        for shards in (from_hf[name], from_megatron[name]):
            np.testing.assert_allclose(shards.embedding, expected, rtol=0, atol=1e-4)
    assert ours.weights == pytest.approx(theirs.weights, abs=1e-4)
    assert theirs.proxy["hf"] == str(gpt2)
    assert ours.proxy["checkpoint"] == str(converted)
    assert not (Path(config.output) / "proxy").exists(), "nothing was trained"


@pytest.mark.usefixtures("alone")
def test_a_start_looks_at_its_proxy_once(
    config: Config, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start finds the checkpoint of proxy.load once, and reads no file twice to recognise it.

    This holds for a start that computes the mixture and for one that uses the file.
    """
    digested: list[Path] = []
    found: list[str] = []
    digest, find = files.sampled_digest, pretrained.find_checkpoint

    def counted_digest(path: Path) -> str:
        digested.append(path)
        return digest(path)

    def counted_find(key: str, *arguments: Any, **named: Any) -> pretrained.PretrainedCheckpoint:
        found.append(key)
        return find(key, *arguments, **named)

    monkeypatch.setattr(files, "sampled_digest", counted_digest)
    for module in (plan, run):
        monkeypatch.setattr(module, "find_checkpoint", counted_find)
    config.proxy.load = str(converted)
    weights = []
    for _ in range(2):
        weights.append(provider.resolve_mixture(config, provider.prepare(config)).weights)
        assert sorted(digested) == sorted(path for path in converted.iterdir() if path.is_file())
        assert found == ["proxy.load"]
        digested.clear()
        found.clear()
    assert weights[0] == weights[1]


@pytest.mark.usefixtures("alone")
def test_a_mixture_is_used_for_its_own_proxy_only(
    config: Config, gpt2: Path, converted: Path
) -> None:
    """A mixture is found again with its own proxy, and refused where the run asks for another."""
    mixture, _ = embedded(config, hf=str(gpt2))
    config.proxy.hf = str(gpt2)
    assert provider.resolve_mixture(config) == mixture
    computed = ComputedMixture.load(config.chameleon.file)
    again = computed.without(["prose"])
    again = again.with_domains(*embed_new(again, {"prose": config.data.domains["prose"].path}))
    assert again.mixture.weights == pytest.approx(mixture.weights, rel=1e-9)
    config.proxy.hf, config.proxy.load = None, str(converted)
    with pytest.raises(UserError, match="made through another proxy"):
        provider.resolve_mixture(config)


@pytest.mark.usefixtures("alone")
def test_proxies_that_are_refused(
    config: Config, gpt2: Path, converted: Path, tmp_path: Path
) -> None:
    """A proxy is refused in one line if it is missing, its tokens are not known to be the domains',
    it has another shape, or two are given.
    """
    tokenizer, config.data.tokenizer = config.data.tokenizer, None
    config.data.vocab_size = 20_000
    config.proxy.load = str(converted)
    with pytest.raises(UserError, match=r"has 512 tokens, but 20000 are expected.*proxy\.tok"):
        provider.resolve_mixture(config)
    config.proxy.load, config.proxy.hf = None, str(gpt2)
    with pytest.raises(UserError, match=r"set data\.tokenizer to the one that the domains"):
        provider.resolve_mixture(config)
    config.data.tokenizer, config.data.vocab_size = tokenizer, None
    for changes, says in (
        ({"hf": str(tmp_path / "none")}, "cannot load the Hugging Face model .*none"),
        ({"load": str(tmp_path / "none")}, "there is no such checkpoint"),
        ({"hf": str(gpt2), "load": str(converted)}, "one of proxy.load and proxy.hf"),
    ):
        config.proxy.hf, config.proxy.load = changes.get("hf"), changes.get("load")
        with pytest.raises(UserError, match=says):
            provider.resolve_mixture(config)
    config.proxy.hf, config.proxy.load = None, str(converted)
    config.chameleon.layer = LAYERS + 1
    with pytest.raises(UserError, match="the proxy's number of layers, 4"):
        provider.resolve_mixture(config)
    config.chameleon.layer = None
    for key, value, says in (
        ("hidden_size", 2 * HIDDEN, r"not a checkpoint of proxy\.model: .*mismatch"),
        ("position_embedding_type", "rope", "it also has embedding.position_embeddings.weight"),
        ("normalization", "RMSNorm", r"it also has decoder\.final_layernorm\.bias"),
        ("add_bias_linear", False, "it also has decoder.layers.mlp.linear_fc1.bias"),
    ):
        before = getattr(config.proxy.model, key)
        setattr(config.proxy.model, key, value)
        with pytest.raises(UserError, match=says):
            provider.resolve_mixture(config)
        setattr(config.proxy.model, key, before)


@pytest.fixture
def other_tokens(config: Config, tmp_path: Path) -> Config:
    """Return the configuration with domains of the same texts, in tokens of another tokenizer."""
    own = load_tokenizer(str(config.data.tokenizer))
    datasets = {n: IndexedDataset(domain.path) for n, domain in config.data.domains.items()}
    texts = {
        name: [own.decode(data.get(number).tolist()) for number in range(len(data))]
        for name, data in datasets.items()
    }
    tokenizer = train_tokenizer((text[::-1] for part in texts.values() for text in part), 400)
    tokenizer.save(str(tmp_path / "other.json"))
    for name, documents in texts.items():
        write_dataset(documents, tokenizer, tmp_path / "other" / name)
        config.data.domains[name].path = str(tmp_path / "other" / name)
    config.data.tokenizer = str(tmp_path / "other.json")
    return config


@pytest.mark.parametrize("form", ["hf", "load"])
@pytest.mark.usefixtures("alone")
def test_any_model_embeds_any_tokens(
    config: Config, other_tokens: Config, gpt2: Path, converted: Path, corpus: Path, form: str
) -> None:
    """Domains in other tokens are encoded again: each embedding is nearest to that of the same text
    in the model's own tokens, the file names both tokenizers, and a domain can be added.
    """
    place = {"hf": gpt2, "load": converted}[form]
    other_tokens.chameleon.samples, other_tokens.chameleon.cross_documents = 512, True
    if form == "load":
        other_tokens.proxy.tokenizer = str(corpus / "tokenizer.json")
    mixture, through_other = embedded(other_tokens, **{form: str(place)})
    record = mixture.proxy
    assert record["tokenizer"] == other_tokens.data.tokenizer
    assert record["reencoded"]["tokenizer"] == str(
        place if form == "hf" else corpus / "tokenizer.json"
    )
    computed = ComputedMixture.load(other_tokens.chameleon.file)
    again = computed.without(["prose"])
    prose = other_tokens.data.domains["prose"].path
    again = again.with_domains(*embed_new(again, {"prose": prose}))
    assert again.mixture.weights == pytest.approx(mixture.weights, rel=1e-9)

    (folder := Path(other_tokens.output) / "own").mkdir()
    own = load_config(write_config(corpus, folder))
    own.proxy.model.num_layers, own.chameleon.samples, own.chameleon.cross_documents = (
        LAYERS,
        512,
        True,
    )
    _, through_own = embedded(own, **{form: str(place)})
    for name, shards in through_other.items():
        apart = {
            other: np.linalg.norm(own_shards.embedding - shards.embedding)
            for other, own_shards in through_own.items()
        }
        assert min(apart, key=apart.__getitem__) == name


@pytest.mark.usefixtures("alone")
def test_a_proxy_that_has_moved_embeds_as_before(
    config: Config, other_tokens: Config, converted: Path, corpus: Path, tmp_path: Path
) -> None:
    """A checkpoint is used with the tokenizer beside it, and both tokenizers may move: a domain
    that is added then gets the weight that it had, from as many windows as were needed.
    """
    first, moved = tmp_path / "first", tmp_path / "moved"
    shutil.copytree(converted, first)
    shutil.copy(corpus / "tokenizer.json", first)
    other_tokens.chameleon.samples = "auto"
    other_tokens.chameleon.tolerance = 0.5
    mixture, _ = embedded(other_tokens, load=str(first))
    assert mixture.proxy["reencoded"]["tokenizer"] == str(first / "tokenizer.json")
    first.rename(moved)
    tokenizer = Path(str(other_tokens.data.tokenizer))
    tokenizer = tokenizer.rename(tokenizer.with_name("moved.json"))
    for known in (load_tokenizer, find_tokenizer, reencoding._digest):  # as in another process
        known.cache_clear()
    computed = ComputedMixture.load(other_tokens.chameleon.file).without(["prose"])
    new = {"prose": other_tokens.data.domains["prose"].path}
    for places, at, says in (
        ([], str(tokenizer), "name its folder with --proxy"),
        ([str(moved)], None, "is not there: name the place where it is now with --tokenizer"),
        ([str(moved)], str(corpus / "tokenizer.json"), "not the tokenizer of the mixture's dom"),
    ):
        with pytest.raises(UserError, match=says):
            embed_new(computed, new, places, tokenizer=at)
    again = computed.with_domains(*embed_new(computed, new, [str(moved)], tokenizer=str(tokenizer)))
    assert again.mixture.weights == pytest.approx(mixture.weights, rel=1e-6)


@pytest.mark.usefixtures("alone")
def test_models_that_cannot_embed(config: Config, gpt2: Path, tmp_path: Path) -> None:
    """A model without some of its weights is refused, and so is one whose tokens see later ones."""
    settings = transformers.BertConfig(
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        is_decoder=False,
    )
    bert = transformers.BertLMHeadModel(settings)
    for name, lm in (("bert", bert), ("part", transformers.AutoModel.from_pretrained(gpt2))):
        shutil.copytree(gpt2, tmp_path / name)
        if name == "part":
            state = {key: value for key, value in lm.state_dict().items() if "h.1." not in key}
            lm.save_pretrained(tmp_path / name, state_dict=state)
        else:
            lm.save_pretrained(tmp_path / name)
    for name, says in (("bert", "is not a causal LM"), ("part", r"has no weights for .*h\.1\.")):
        config.proxy.hf = str(tmp_path / name)
        with pytest.raises(UserError, match=says):
            provider.resolve_mixture(config)


@pytest.mark.usefixtures("alone")
def test_other_weights_are_another_proxy(config: Config, converted: Path, tmp_path: Path) -> None:
    """A mixture through one checkpoint is not taken for that of another one of the same shape."""
    other = tmp_path / "other"
    shutil.copytree(converted, other)
    file = max(other.glob("*.distcp"), key=lambda path: path.stat().st_size)
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    file.write_bytes(contents)
    embedded(config, load=str(converted))
    config.proxy.load = str(other)
    with pytest.raises(UserError, match="made through another proxy"):
        provider.resolve_mixture(config)
