"""config/: wrong settings are refused before anything runs, in words that name them."""

import re
from pathlib import Path

import pytest

from nemo_chameleon.config import load_config, parse_command_line
from nemo_chameleon.config.data import DomainConfig
from nemo_chameleon.config.loading import parse_path
from nemo_chameleon.config.validation import check, check_proxy
from nemo_chameleon.utils.errors import UserError

COMPLETE = (
    "output=out",
    "data.domains.a.path=/data/a",
    "data.domains.b.path=/data/b",
    "data.vocab_size=100",
    "train.train_iters=1000",
    "train.global_batch_size=32",
)
ROOT = Path(__file__).parents[1]
START = ["checkpoint.pretrained_checkpoint=base"]


def test_order_of_precedence(tmp_path: Path) -> None:
    """The command line overrides the file, and the file overrides the defaults.

    The proxy's seed follows that of the base run.
    """
    (tmp_path / "c.yaml").write_text("model: {num_layers: 3, hidden_size: 96}\ntrain: {seed: 7}")
    config = load_config(tmp_path / "c.yaml", [*COMPLETE, "model.num_layers=4"])
    assert (config.model.num_layers, config.model.hidden_size) == (4, 96)
    assert config.model.num_attention_heads == 12
    assert config.proxy.train.seed == config.train.seed == 7
    assert config.chameleon.file == "out/mixture.json"


def test_command_line() -> None:
    """`--config FILE` may stand anywhere among the overrides."""
    demo = str(ROOT / "conf" / "demo.yaml")
    config = parse_command_line(["train.seed=5", "--config", demo, "data.mixture=uniform"])
    assert (config.train.seed, config.data.mixture) == (5, "uniform")
    assert len(config.data.domains) == 8


def test_a_file_without_the_option() -> None:
    """A file that ends in .yaml needs no `--config`; two files are refused."""
    demo = str(ROOT / "conf" / "demo.yaml")
    config = parse_command_line(["train.seed=5", demo, "data.mixture=uniform"])
    assert (config.train.seed, config.data.mixture) == (5, "uniform")
    for given in ([demo, demo], ["--config", demo, demo]):
        with pytest.raises(UserError, match=r"one file, not .*demo.yaml and .*demo.yaml: name one"):
            parse_command_line(given)


def test_other_options_are_refused() -> None:
    """A mistyped option is an error in one line, as a mistyped key is."""
    for given, says in (
        ("--verbose", "unrecognized arguments: --verbose"),
        ("--config-name=x", "name the file as in --config FILE"),
        ("--data.mixture=uniform", "written without --, as in data.mixture=uniform"),
        ("--data.mixture", "written without --, as in data.mixture=..."),
    ):
        with pytest.raises(UserError) as error:
            parse_command_line([given])
        assert str(error.value).endswith(says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data.mixture: uniform", "the key data.mixture has dots.*as in data: {mixture: ...}"),
        ("data: {domains.c4.en.path: /x}", r"as in data: {domains: {c4.en: {path: ...}}}"),
        ("data.domains.c4.en.pth: /x", "unknown key data.domains.c4.en.pth; did you mean .*c4.en"),
        ("train.sed: 1", "unknown key train.sed; did you mean train.seed"),
        ("a..b: 1", "unknown key a..b"),
        (
            "model: ${proxy.model}",
            "model=${proxy.model} takes a whole section, so model.seq_length",
        ),
        ("output: ${DATA}/x", "write ${oc.env:DATA} for an environment variable"),
        ("output: ${data.dat}/x", "correct the key in '${...}'"),
        (
            "data: {domains: {a: {path: */part-*}}}",
            "write .* quotes around text that begins with .,",
        ),
        ("output: ~/runs", "output=~/runs: ~ is no folder here: write /"),
        ("output: $HOME/x", "only a shell replaces $HOME: write ${oc.env:HOME}/x"),
        ("output: *", "quotes around text that begins with .,"),
        ("output: *x", "quotes around text that begins with .,"),
        ("output: %x", "quotes around text that begins with .,"),
        ("train:\n\tseed: 1", "it is not YAML at line 2, column 1: write blanks in place of tabs"),
    ],
)
def test_a_file_that_looks_right(text: str, says: str, tmp_path: Path) -> None:
    """What people write from habit is refused in words that say how it is written here."""
    (tmp_path / "c.yaml").write_text(text)
    complete = [item for item in COMPLETE if not item.startswith(text.split(":")[0] + "=")]
    with pytest.raises(UserError, match=says.replace("$", r"\$").replace("{", r"\{")) as error:
        load_config(tmp_path / "c.yaml", [*complete, "model.seq_length=64"])
    assert "\n" not in str(error.value)


def test_later_layers_replace_earlier_ones(tmp_path: Path) -> None:
    """Values are replaced one by one, lists and whole sections by reference at once."""
    text = "proxy: {model: '${model}'}\ndata: {ignored_keys: [a, b]}"
    (tmp_path / "c.yaml").write_text(text)
    overrides = ["output=???", "data.ignored_keys=[c]", "model.num_layers=3"]
    config = load_config(tmp_path / "c.yaml", [*COMPLETE, *overrides])
    assert (config.output, config.data.ignored_keys) == ("out", ["c"])
    assert config.proxy.model == config.model
    assert config.model.num_layers == 3


def test_proxy_fits_the_base_models_layout() -> None:
    """The proxy's tensor parallel size follows the base model's as far as its 12 heads allow."""
    for base, proxy in ((1, 1), (2, 2), (8, 4), (16, 4)):
        override = f"parallel.tensor_model_parallel_size={base}"
        config = load_config(None, [*COMPLETE, override])
        assert config.proxy.parallel.tensor_model_parallel_size == proxy
        check_proxy(config, world_size=16)


def test_domain_names_are_the_users(tmp_path: Path) -> None:
    """A domain's name may have dots, spaces and capitals; only the keys below it are checked."""
    (tmp_path / "c.yaml").write_text('data: {domains: {"Wiki 2.0/en": {path: x}}}')
    config = load_config(tmp_path / "c.yaml", COMPLETE)
    assert config.data.domains["Wiki 2.0/en"].path == "x"


def test_a_path_is_text_or_a_list(tmp_path: Path) -> None:
    """A domain's path is text, a glob included, or a list in the file and on the command line."""
    (tmp_path / "c.yaml").write_text("data: {domains: {a: {path: [x, y]}, b: {path: x}}}")
    overrides = [key for key in COMPLETE if "domains" not in key]
    config = load_config(tmp_path / "c.yaml", overrides)
    assert [d.path for d in config.data.domains.values()] == [["x", "y"], "x"]
    typed = ["data.domains.a.path=/d/web-*", "data.domains.b.path=[/d/b,/d/c-?]"]
    config = load_config(tmp_path / "c.yaml", [*overrides, *typed])
    assert [d.path for d in config.data.domains.values()] == ["/d/web-*", ["/d/b", "/d/c-?"]]
    assert parse_path("[/d/b, /d/c]", "b") == ["/d/b", "/d/c"]
    assert parse_path("/d/[ab]", "b") == "/d/[ab]"
    for wrong in ("[]", "[a,[b]]", "[a: b: c]"):
        with pytest.raises(UserError, match=r"^'?b="):
            parse_path(wrong, "b")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.mixtur=uniform", "unknown key data.mixtur; did you mean data.mixture?"),
        ("mixture=uniform", "unknown key mixture; did you mean data.mixture?"),
        ("data.domains.a.pth=x", "did you mean data.domains.a.path?"),
        ("proxy.model.num_layer=3", "did you mean proxy.model.num_layers?"),
        ("data.pins.a=0.1", "did you mean data.pin"),
        ("data.validation.a.paht=x", "did you mean data.validation.a.path"),
        ("train.learning_rate=1", "the keys of train are train_iters, global_batch_size,"),
        ("train.iters=1", "did you mean train.train_iters or train.eval_iters?"),
        ("train.lr=1", "did you mean optimizer.lr"),
        ("model.heads=1", "did you mean model.num_attention_heads?"),
        ("checkpoint.load=1", "the keys of checkpoint are "),
        ("train.train_iters=1" + 400 * "0", "is too large: it must fit into 64 bits"),
        ("output=~/runs", "~ is no folder here: write /"),
        ("chameleon.file=~/m.json", "chameleon.file=~/m.json: ~ is no folder here: write /"),
        ("data.domains.a.path=[x,~/y]", "data.domains.a.path=~/y: ~ is no folder here"),
        ("data.cache=/x/$USER/c", "replaces $USER: write /x/${oc.env:USER}/c"),
        ("+train.seed=1", "is not a key=value override: write train.seed=1, because every key"),
        ("~train.seed", "a key cannot be removed"),
        ("train.seed =1", "write train.seed=1, without blanks"),
        ("output=setup.cfg", "output=setup.cfg is a file: name a folder"),
        ("data.ignored_keys=title,mood", 'write \'data.ignored_keys=["title", "mood"]\''),
        ("data.domains.a.path=[]", r"data.domains.a.path=[] is empty: name at least one part"),
        ("data.domains.a.path=[x,[y]]", "data.domains.a.path=['x', ['y']] must be text, or a list"),
        (
            "data.domains.a.path=null",
            "data.domains.a.path must be text, or a list of texts, but null",
        ),
        ("data.validation.a.path=[]", "data.validation.a.path=[] is empty"),
        ("data.max_epochs=0", "data.max_epochs=0.0 must be positive"),
        ("data.max_epochs=.inf", "must be positive and finite"),
        ("xyzzy=1", "unknown key xyzzy"),
        ("train.train_iters=many", "train.train_iters must be a whole number, not 'many'"),
        ("train.train_iters=0", "train.train_iters=0 must be at least 1"),
        ("model.num_layers", "'model.num_layers' is not a key=value override"),
        ("train.seed=-1", "train.seed=-1 must be at least 0"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay=-1.0 must be at least 0"),
        ("optimizer.adam_beta2=1", "less than 1"),
        ("model.init_method_std=nan", "model.init_method_std must be a number, not 'nan'"),
        ("data.num_workers=-1", "data.num_workers=-1 must be at least 0"),
        ("checkpoint.keep=0", "checkpoint.keep=0 must be at least 1"),
        ("chameleon.file=runs/mixture", "must end in .json"),
        ("model.num_attention_heads=256", "rope needs an even size"),
        ("data.domains=[a,b]", "data.domains"),
        ("data.mixture=" + "x" * 5000, "neither a file that exists nor one of"),
        ("data.mixture=chamelion", "did you mean chameleon?"),
        ("data.vocab_size=null", "set one of data.tokenizer and data.vocab_size: neither is set"),
        (
            "parallel.tensor_model_parallel_size=8",
            "num_attention_heads=12 is not a multiple of parallel.tensor_model_parallel_size=8",
        ),
        ("parallel.tensor_model_parallel_size=2", "the number of processes, 1"),
        ("parallel.sequence_parallel=true", "needs tensor parallelism"),
        ("proxy.parallel.pipeline_model_parallel_size=2", "is not a multiple of"),
        (
            "train.micro_batch_size=5",
            "train.global_batch_size=32 is not a multiple of train.micro_batch_size=5",
        ),
        (
            "model.num_attention_heads=7",
            "model.hidden_size=768 is not a multiple of model.num_attention_heads=7",
        ),
        ("optimizer.lr_warmup_iters=1000", "less than train.train_iters"),
        ("optimizer.min_lr=1", "between 0 and optimizer.lr"),
        ("train.precision=fp8", "not one of auto, bf16, fp32"),
        ("checkpoint.resume=yes", "not one of auto, never"),
        ("chameleon.preset=papers", "not one of calibrated, paper"),
        ("chameleon.objective=finetuning", "did you mean finetune?"),
        ("chameleon.ridge=0", "must be a positive number"),
        ("chameleon.layer=7", "must be between 1 and the proxy's number of layers, 6"),
        ("chameleon.sample_length=513", "must be between 1 and the proxy's seq_length"),
        ("chameleon.samples=0", "must be at least 1"),
    ],
)
def test_refused(override: str, says: str) -> None:
    """A wrong key or value is refused in one line that names it and, if there is one, the right
    one.
    """
    with pytest.raises(UserError) as error:
        config = load_config(None, [*COMPLETE, override])
        check(config, world_size=1)
        check_proxy(config, world_size=1)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_one_domain_is_no_mixture() -> None:
    """A single domain is refused before anything is opened."""
    one = [item for item in COMPLETE if "domains.b" not in item]
    with pytest.raises(UserError, match="at least two"):
        check(load_config(None, one), world_size=1)


def test_more_domains_than_megatron_can_number() -> None:
    """More domains than the 16 bits of Megatron's blend can number are refused before training."""
    config = load_config(None, COMPLETE)
    config.data.domains = {f"d{i}": DomainConfig(path="p") for i in range(2**15 - 1)}
    with pytest.raises(
        UserError, match="32,767 domains, but Megatron's blend can number only 32,766"
    ):
        check(config, 1)


def test_what_has_no_default_must_be_set() -> None:
    """A missing value is named together with the way to set it."""
    without = [item for item in COMPLETE if "train_iters" not in item]
    with pytest.raises(
        UserError, match=r"train\.train_iters is not set.*train\.train_iters=\.\.\."
    ):
        load_config(None, without)
    with pytest.raises(UserError, match=r"^output is not set"):
        load_config(None, COMPLETE[1:])


def test_unreadable_files(tmp_path: Path) -> None:
    """A missing file, a file that is no YAML and one that is no mapping are errors that name the
    file.
    """
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "broken.yaml").write_text("a: [1")
    for name in ("absent", "broken", "list"):
        with pytest.raises(UserError, match=rf"{name}\.yaml"):
            load_config(tmp_path / f"{name}.yaml")


@pytest.mark.parametrize("name", ["demo", "demo_sft", "pretrain_chameleon", "sft_chameleon"])
def test_shipped_configurations_are_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file in conf/ passes the checks for a number of processes that it is meant for."""
    monkeypatch.setenv("DATA", "/data")
    config = load_config(ROOT / "conf" / f"{name}.yaml")
    world_size = 2 if name.startswith("demo") else 16
    check(config, world_size)
    check_proxy(config, world_size)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.dataset=sfd"], "did you mean sft?"),
        (["data.packing=false"], "data.packing is for data.dataset=sft"),
        (["data.unit=words"], "data.unit=words is not one of samples, tokens"),
        (["data.dataset=sft", "data.tokenizer=null", "data.vocab_size=9"], "needs data.tokenizer"),
        (["data.dataset=sft", "data.on_too_long=cut"], "refuse, skip, truncate"),
        (["data.dataset=sft"], "needs checkpoint.pretrained_checkpoint"),
        (["data.dataset=sft", "chameleon.source=proxy"], "set checkpoint.pretrained_checkpoint"),
        (["data.dataset=sft", *START, "proxy.hf=gpt2"], "set chameleon.source=proxy"),
        (["data.dataset=sft", *START, "chameleon.cross_documents=true"], "is for data.dataset=gpt"),
        (["chameleon.source=proxies"], "did you mean proxy?"),
        (["chameleon.tokens=none"], "chameleon.tokens=none is not one of answers, all"),
    ],
)
def test_settings_of_finetuning(overrides: list[str], says: str) -> None:
    """A setting that finetuning needs is asked for, and its own settings are refused elsewhere."""
    config = load_config(ROOT / "conf" / "demo.yaml", overrides)
    with pytest.raises(UserError, match=re.escape(says)):
        check(config, 2)


def test_finetuning_embeds_otherwise() -> None:
    """The kind of data decides what embeds, unless it is set, and not what the objective is."""
    for given, objective, source in (
        ([], None, "proxy"),
        (["data.dataset=sft"], None, "model"),
        (["data.dataset=sft", "chameleon.objective=finetune"], "finetune", "model"),
        (["data.dataset=sft", "chameleon.source=proxy"], None, "proxy"),
    ):
        config = load_config(ROOT / "conf" / "demo.yaml", given)
        assert (config.chameleon.objective, config.chameleon.source) == (objective, source)
