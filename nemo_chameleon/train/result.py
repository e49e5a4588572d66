"""The result of a training run, which its result.json holds and train/report.py reads."""

import json
from collections.abc import Mapping
from typing import Any

from nemo_chameleon.mixture.plan import Plan
from nemo_chameleon.models.gpt import parameter_count
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.files import write_atomically
from nemo_chameleon.utils.provenance import provenance

RESULT = "result.json"
"""The name of the file in the run's folder."""
Scores = Mapping[str, Mapping[str, float]]
"""By name of a set: its "loss" in nats per token and its "perplexity"."""


def result_of(
    run: TrainingRun,
    *,
    iterations: int,
    samples: Mapping[str, int],
    answer_tokens: Mapping[str, int],
    loss: float,
    seconds: float,
    scores: Scores,
) -> dict[str, Any]:
    """Put together what a run has to show.

    Args:
        run: the run.
        iterations: number of iterations that were trained.
        samples: number of samples that were drawn, by domain.
        answer_tokens: number of tokens that carried loss, by domain; for packed samples only.
        loss: mean loss of the last iteration in nats per token.
        seconds: duration of the training.
        scores: losses of the domains and of the other validation sets.

    Returns:
        The contents of result.json.
    """
    length = run.settings.model.seq_length
    domains = {
        name: {
            "weight": run.mixture.weights.get(name, 0.0),
            "tokens": domain.tokens,
            "samples": samples[name],
            **({"answer_tokens": answer_tokens[name]} if run.kind.packed else {}),
            "epochs": samples[name] * length / domain.pass_tokens(length),
            **scores.get(name, {}),
        }
        for name, domain in run.domains.items()
    }
    apart = {name: score for name, score in scores.items() if name not in domains}
    return {
        "run": run.name,
        "mixture": run.mixture.name,
        "parameters": parameter_count(run.settings.model, run.vocab_size),
        "iterations": iterations,
        "tokens": sum(samples.values()) * length,
        "loss": loss,
        "domains": domains,
        **({} if run.plan is None else {"stages": _stages(run.plan)}),
        "macro": _means({name: scores[name] for name in domains if name in scores}),
        "validation": apart,
        "validation macro": _means(apart),
        "seconds": round(seconds, 1),
        "created": provenance(),
    }


def _stages(plan: Plan) -> list[dict[str, Any]]:
    """Return the samples of each domain in each stage."""
    drawn = plan.by_stage().items()
    return [
        {
            "mixture": stage.mixture.method.get("of", stage.mixture.name),
            "samples": stage.samples,
            "domains": {name: by_stage[number] for name, by_stage in drawn if number in by_stage},
        }
        for number, stage in enumerate(plan.stages, 1)
    ]


def _means(scores: Scores) -> dict[str, float]:
    """Return the mean of each figure over the domains; empty where there are no domains."""
    return {
        what: sum(score[what] for score in scores.values()) / len(scores)
        for what in ("loss", "perplexity")
        if scores
    }


def save_result(run: TrainingRun, result: Mapping[str, Any]) -> None:
    """Write a run's result.json.

    Args:
        run: the run.
        result: its contents, of which every number is finite.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps(result, indent=2, allow_nan=False)
    write_atomically(run.directory / RESULT, text + "\n")
