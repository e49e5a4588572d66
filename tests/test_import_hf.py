"""models/import_hf.py: a Hugging Face model like Llama becomes a megatron-core checkpoint."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from imported import (
    Results,
    by_megatron,
    by_transformers,
    gathered,
    largest_difference,
    on_each_rank,
    save_llama,
)
from nemo_chameleon import cli, provider
from nemo_chameleon.config import load_config
from nemo_chameleon.config.data import DataConfig
from nemo_chameleon.models import layers, tracker
from nemo_chameleon.models.import_hf import import_huggingface
from nemo_chameleon.provider.runs import base_run
from nemo_chameleon.train import trainer
from nemo_chameleon.utils.errors import UserError
from project import write_config
from ranks import on_ranks

LAYERS = (1, 2, 3, 4)
# Each setting that a real model may have differs from its default in one of them.
MODELS: dict[str, dict[str, Any]] = {
    "tied, with wide heads": {
        "tie_word_embeddings": True,
        "head_dim": 10,
        "rms_norm_eps": 0.01,
        "rope_theta": 500000.0,
    },
    "untied, with biases": {"attention_bias": True, "mlp_bias": True},
    "Mistral, with unused rows": {"kind": "Mistral", "vocab_size": 520, "sliding_window": None},
}
LAYOUTS = {"one process": {}, "TP2": {"tensor": 2}, "PP2": {"pipeline": 2}}
TOKENS = torch.randint(0, 512, (2, 25), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folders(corpus: Path, tmp_path_factory: pytest.TempPathFactory, alone: None) -> Path:
    """Return a folder with each model of `MODELS`, and each imported, as `NAME imported`."""
    folder = tmp_path_factory.mktemp("models")
    for name, settings in MODELS.items():
        save_llama(folder / name, corpus / "tokenizer.json", **settings)
        import_huggingface(folder / name, folder / f"{name} imported")
    return folder


@pytest.fixture(scope="module")
def expected(folders: Path, alone: None) -> dict[str, Results]:
    """Return what transformers computes, by the name of the model."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    return {name: by_transformers(load(folders / name), TOKENS, LAYERS) for name in MODELS}


@pytest.fixture(scope="module")
def computed(folders: Path, corpus: Path, alone: None) -> dict[tuple[str, str], Results]:
    """Return what the checkpoints compute, by the names of the layout and the model."""
    data = DataConfig(tokenizer=str(corpus / "tokenizer.json"))
    own = {name: str(folders / f"{name} imported") for name in MODELS}
    results = {
        ("one process", name): by_megatron(own[name], data, TOKENS, LAYERS) for name in MODELS
    }
    cases = [(layout, name) for layout in ("TP2", "PP2") for name in MODELS]
    runs = [(own[name], data, LAYERS, LAYOUTS[layout]) for layout, name in cases]
    results |= zip(cases, gathered(on_ranks(2, on_each_rank, runs, TOKENS)), strict=True)
    return results


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_states_and_losses_are_those_of_transformers(
    computed: dict[tuple[str, str], Results], expected: dict[str, Results], name: str, layout: str
) -> None:
    """After every layer the hidden states, and at every token the loss, are the same to 1e-4."""
    differences = largest_difference(computed[layout, name], expected[name])
    assert len(differences) == len(LAYERS) + 1
    assert max(differences.values()) < 1e-4, differences


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
    ],
)
@pytest.mark.usefixtures("alone")
def test_weights_keep_their_type(
    corpus: Path, tmp_path: Path, theirs: torch.dtype, ours: torch.dtype
) -> None:
    """A model in bf16 is stored in bf16 and any other one in fp32; both load in fp32."""
    from megatron.core import dist_checkpointing

    save_llama(tmp_path / "hf", corpus / "tokenizer.json", dtype=theirs)
    imported = import_huggingface(tmp_path / "hf", tmp_path / "imported")
    path = tracker.newest(imported.path)
    assert path is not None
    stored = dist_checkpointing.load_tensors_metadata(str(path))
    assert {part.dtype for part in stored.values()} == {ours}
    assert imported.precision == ours
    data = DataConfig(tokenizer=str(corpus / "tokenizer.json"))
    results = by_megatron(str(imported.path), data, TOKENS, LAYERS)
    # Changing the type afterwards would leave the rotary frequencies rounded.
    load = transformers.AutoModelForCausalLM.from_pretrained
    lm = load(tmp_path / "hf", dtype=torch.float32)
    differences = largest_difference(results, by_transformers(lm, TOKENS, LAYERS))
    assert max(differences.values()) < 1e-4, differences


class AttentionWithState(layers.TorchAttention):
    """Attention with an extra state, such as Transformer Engine's has."""

    def get_extra_state(self) -> torch.Tensor:
        """Return the state that a checkpoint would keep."""
        return torch.zeros(2, dtype=torch.uint8)

    def set_extra_state(self, state: object) -> None:
        """Refuse a state, because none was written."""
        raise AssertionError(state)


@pytest.mark.usefixtures("alone")
def test_layers_with_extra_states_load_it(
    folders: Path,
    corpus: Path,
    expected: dict[str, Results],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Layers that have extra states load a checkpoint in which other layers wrote none."""
    monkeypatch.setattr(layers, "TorchAttention", AttentionWithState)
    name = next(iter(MODELS))
    data = DataConfig(tokenizer=str(corpus / "tokenizer.json"))
    results = by_megatron(str(folders / f"{name} imported"), data, TOKENS, LAYERS)
    assert max(largest_difference(results, expected[name]).values()) < 1e-4


@pytest.mark.usefixtures("alone")
def test_it_embeds_as_it_does_in_transformers(folders: Path, corpus: Path, tmp_path: Path) -> None:
    """The imported model as proxy.load gives the weights that the folder gives as proxy.hf.

    The configuration does not describe the model, because the checkpoint does.
    """
    name = next(iter(MODELS))
    (folders / name / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    weights = []
    for key, place in (("hf", folders / name), ("load", folders / f"{name} imported")):
        config = load_config(write_config(corpus, tmp_path), [f"proxy.{key}={place}"])
        config.chameleon.file = str(tmp_path / f"{key}.json")
        weights.append(provider.resolve_mixture(config).weights)
    assert weights[0] == pytest.approx(weights[1], abs=1e-5)


@pytest.mark.usefixtures("alone")
def test_a_run_starts_from_it_with_the_settings_that_are_printed(
    folders: Path,
    expected: dict[str, Results],
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command prints YAML with which a run starts from the model; other settings are refused.

    The tokenizer that the settings name lies beside the checkpoint, with the chat template. A run
    that learns nothing saves the model that it started from.
    """
    name, output = next(iter(MODELS)), tmp_path / "imported"
    (folders / name / "chat_template.jinja").write_text("{{ messages }}")
    command = ["nemo-chameleon", "import-hf", str(folders / name), str(output)]
    monkeypatch.setattr(sys, "argv", command)
    cli.main()
    said = capsys.readouterr().out
    assert f"{output}: llama with 4 layers" in said
    printed = yaml.safe_load(said.split("\n\n")[-1])
    assert printed["model"]["norm_epsilon"] == 0.01
    assert printed["data"] == {"tokenizer": str(output / "tokenizer.json")}
    assert (output / "chat_template.jinja").is_file()
    settings = yaml.safe_load(write_config(corpus, tmp_path).read_text())
    settings["data"] |= {**printed["data"], "mixture": "uniform"}
    settings |= {"model": printed["model"], "checkpoint": printed["checkpoint"]}
    settings["optimizer"] |= {"lr": 0.0, "min_lr": 0.0}
    settings["train"] |= {"train_iters": 1, "eval_iters": 0}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    config = load_config(tmp_path / "config.yaml")
    prepared = provider.prepare(config)
    run = base_run(config, prepared.domains, provider.resolve_mixture(config, prepared))
    trainer.train(run)
    results = by_megatron(str(run.directory), config.data, TOKENS, LAYERS)
    assert max(largest_difference(results, expected[name]).values()) < 1e-4
    config.model.norm_epsilon, config.output = 1e-5, str(tmp_path / "other")
    with pytest.raises(UserError, match=r"set model\.norm_epsilon=0\.01"):
        provider.prepare(config)


REFUSED: dict[str, dict[str, Any]] = {
    "rope_type=linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "rope_theta=10000.5": {"rope_theta": 10000.5},
    "partial_rotary_factor=0.5": {"partial_rotary_factor": 0.5},
    "hidden_act=gelu": {"hidden_act": "gelu"},
    "attention_bias=True": {"attention_bias": True},
    "mlp_bias=True": {"mlp_bias": True},
    "sliding_window=16, .* lower max_position_embeddings from 64 to 16": {"sliding_window": 16},
    "quantization_config=": {"quantization_config": {"quant_method": "fp8"}},
    "model_type=qwen3": {"model_type": "qwen3"},
    "model_type=mixtral": {"model_type": "mixtral"},
}


@pytest.mark.parametrize("says", REFUSED)
def test_models_that_are_refused(corpus: Path, tmp_path: Path, says: str) -> None:
    """A model that no checkpoint here can represent is refused; the error names the entry.

    The error also says what can be done, and nothing is written.
    """
    mistral = "sliding_window" in REFUSED[says]
    save_llama(tmp_path / "hf", corpus / "tokenizer.json", "Mistral" if mistral else "Llama")
    file = tmp_path / "hf" / "config.json"
    entries = {**json.loads(file.read_text()), **REFUSED[says]}
    if "partial_rotary_factor" in REFUSED[says]:
        entries["rope_parameters"] |= REFUSED[says]
    elif any(key.startswith("rope") for key in REFUSED[says]):
        entries.pop("rope_parameters")
    file.write_text(json.dumps(entries))
    with pytest.raises(UserError, match=rf"config\.json has .*{says}.* Set proxy\.hf=.*AutoBridge"):
        import_huggingface(tmp_path / "hf", tmp_path / "imported")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_folders_that_are_refused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is refused without a model, all of its weights or rows for all of its tokens.

    So are an output that exists and several processes.
    """
    from safetensors.torch import load_file, save_file

    lm, output = tmp_path / "lm", tmp_path / "imported"
    save_llama(lm, corpus / "tokenizer.json")
    weights = load_file(lm / "model.safetensors")
    taken = weights.pop("model.layers.1.mlp.up_proj.weight")
    save_llama(tmp_path / "few rows", corpus / "tokenizer.json", vocab_size=500)
    with pytest.raises(UserError, match="holds no Hugging Face model"):
        import_huggingface(corpus, output)
    with pytest.raises(UserError, match="has 512 tokens, but vocab_size=500"):
        import_huggingface(tmp_path / "few rows", output)
    for other, says in (
        ({}, r"has no weights for model\.layers\.1\.mlp\.up_proj"),
        ({"up_proj": taken[1:]}, r"of another shape for .*up_proj"),
        ({"up_proj": taken, "up_proj_2": taken}, r"does not describe: .*up_proj_2"),
    ):
        extra = {f"model.layers.1.mlp.{name}.weight": t.clone() for name, t in other.items()}
        save_file({**weights, **extra}, lm / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match=says):
            import_huggingface(lm, output)
    assert not output.exists()
    output.mkdir()
    with pytest.raises(UserError, match="exists already: remove it, or name another folder"):
        import_huggingface(lm, output)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun"):
        import_huggingface(lm, output)
