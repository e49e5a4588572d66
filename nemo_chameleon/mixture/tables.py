"""Mixtures as tables in plain text."""

from nemo_chameleon.method.weights import effective_domains
from nemo_chameleon.mixture.mixture import Mixture, proxies_of
from nemo_chameleon.utils.tables import amount, decimal, table

# How many domains a line names before the rest is only counted.
_NAMED = 8


def show_mixture(mixture: Mixture) -> str:
    """Describe a mixture: its weights, heaviest first, and how they were made.

    Args:
        mixture: the mixture.

    Returns:
        A table of the domains, and one line each for method, proxy and caveats.
    """
    rows = []
    for name in sorted(mixture.weights, key=lambda name: -mixture.weights[name]):
        facts = mixture.domains.get(name, {})
        tokens = facts.get("tokens")
        interval, heaviest = mixture.uncertainty.get(name), facts.get("heaviest_share")
        rows.append(
            [
                name,
                f"{mixture.weights[name]:.4f}",
                "-" if interval is None else f"{interval[0]:.4f}-{interval[1]:.4f}",
                decimal(facts.get("score"), 4),
                "-" if heaviest is None else f"{heaviest:.1%}",
                "-" if tokens is None else amount(tokens),
            ]
        )
    spread = effective_domains(list(mixture.weights.values()))
    covered = mixture.method.get("intervals")
    covers = "95 % interval" if covered is None else f"95 % over {covered}"
    lines = [
        table(["domain", "weight", covers, "score", "heaviest 1%", "tokens"], rows),
        f"{len(rows)} domains; effective number of domains: {spread:.1f}",
    ]
    described = [("method", mixture.method)]
    described += [("proxy", proxy) for proxy in proxies_of(mixture.proxy)]
    for title, facts in described:
        apart = ("caveats", "layers")
        known = [f"{key} {value}" for key, value in facts.items() if key not in apart]
        if known:
            lines.append(f"{title}: " + ", ".join(known))
    lines += [f"note: {caveat}" for caveat in mixture.method.get("caveats", [])]
    if "layers" in mixture.method:
        lines.append(layers_table(mixture))
    return "\n".join([*lines, *expected_losses(mixture)])


def expected_losses(mixture: Mixture) -> list[str]:
    """Say before a training on computed weights what they should do to the losses.

    Args:
        mixture: the mixture.

    Returns:
        A line about the comparison, one line each for the domains that are drawn more and less than
        with uniform weights, with weights as multiples of an equal share, and one about other text;
        none if the weights were not computed or are all equal.
    """
    shares = {name: round(w * len(mixture.weights), 2) for name, w in mixture.weights.items()}
    groups = (
        ("lower", sorted((n for n in shares if shares[n] > 1), key=lambda n: -shares[n])),
        ("higher", sorted((n for n in shares if shares[n] < 1), key=lambda n: shares[n])),
    )
    if mixture.objective is None or not all(names for _, names in groups):
        return []
    gain = "low" if mixture.objective == "pretrain" else "high"
    lines = [
        f"expected from these weights, which favour domains with {gain} scores (in brackets: the "
        "weight as a multiple of an equal share):"
    ]
    for loss, names in groups:
        drawn = [f"{name} ({shares[name]:.2f})" for name in names[:_NAMED]]
        rest = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
        lines.append(f"  a {loss} loss than with uniform weights: {', '.join(drawn + rest)}")
    lines.append(
        "  other text: a lower loss where it is like the former domains, a higher one where it is "
        "like the latter"
    )
    return lines


def layers_table(mixture: Mixture) -> str:
    """Show the weights that each layer of the proxy would give.

    Args:
        mixture: computed with all layers, so that its method has `layers`.

    Returns:
        A table with one column per layer. The last row has the share of the samples that the layer
        would move to another domain, compared with the layer that was used.
    """
    layers = mixture.method["layers"]
    used = f"layer {mixture.method['layer']}" if "layer" in mixture.method else "these weights"
    header = ["domain", *(f"layer {layer}" for layer in layers)]
    rows = [
        [name, *(f"{weights[name]:.4f}" for weights in layers.values())] for name in mixture.weights
    ]
    moved = [
        sum(abs(weights[name] - mixture.weights[name]) for name in mixture.weights) / 2
        for weights in layers.values()
    ]
    rows.append([f"moved from {used}", *(f"{share:.4f}" for share in moved)])
    return table(header, rows, rule_before=len(mixture.weights))


def diff_mixtures(before: Mixture, after: Mixture) -> str:
    """Compare two mixtures: weights by domain, the largest change first, and settings.

    Args:
        before: a mixture.
        after: another mixture; its domains may differ.

    Returns:
        A table of the domains, the share of the samples that moves to another domain, and one line
        per setting of method and proxy that differs.
    """
    old, new = before.weights, after.weights
    change = {name: new.get(name, 0.0) - old.get(name, 0.0) for name in [*old, *new]}
    rows = [
        [name, decimal(old.get(name), 4), decimal(new.get(name), 4), f"{change[name]:+.4f}"]
        for name in sorted(change, key=lambda name: -abs(change[name]))
    ]
    lines = [
        table(["domain", "before", "after", "change"], rows),
        f"{sum(map(abs, change.values())) / 2:.4f} of the samples go to another domain",
    ]
    for title, one, other in (
        ("method", before.method, after.method),
        ("proxy", before.proxy, after.proxy),
    ):
        apart = ("caveats", "averaged", "layers")
        told = [key for key in {**one, **other} if key not in apart]
        for key in [key for key in told if one.get(key) != other.get(key)]:
            lines.append(f"{title} {key}: {one.get(key)} -> {other.get(key)}")
    return "\n".join(lines)
