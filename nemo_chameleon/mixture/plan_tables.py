"""Plans in words and tables of plain text."""

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_chameleon.mixture.plan import Plan
from nemo_chameleon.utils.tables import amount, listed, table

_NAMED = 3  # so many differences are named, and the others counted


def difference(before: Plan, after: Plan) -> str | None:
    """Say how the samples of two plans differ.

    Args:
        before: a plan.
        after: another plan.

    Returns:
        The first differences, in words; None if both draw the same samples in the same order.
    """
    told = [*differences(before, after), *_changed_weights(before, after)]
    if not told:
        return None
    more = [f"{len(told) - _NAMED:,} more differences"] if len(told) > _NAMED else []
    return "; ".join(told[:_NAMED] + more)


def differences(before: Plan, after: Plan) -> list[str]:
    """Say how the stages of two plans differ, apart from their weights.

    Args:
        before: a plan.
        after: another plan.

    Returns:
        The differences, in words.
    """
    told = []
    if len(before.stages) != len(after.stages):
        told.append(f"{_stages(after)} in place of {_stages(before)}")
    ends = zip(before.starts[1:], after.starts[1:], strict=False)
    for number, (old, new) in enumerate(ends, 1):
        if old != new:
            told.append(f"stage {number} ends with sample {new:,} in place of {old:,}")
    for number, (was, now) in enumerate(zip(before.stages, after.stages, strict=False), 1):
        if was.blended != now.blended:
            told.append(f"stage {number} is in another order")
    return told


def _changed_weights(before: Plan, after: Plan) -> list[str]:
    told = []
    for number, (was, now) in enumerate(zip(before.stages, after.stages, strict=False), 1):
        for name in sorted({*was.weights, *now.weights}):
            old_share, new_share = was.weights.get(name, 0.0), now.weights.get(name, 0.0)
            if old_share != new_share:
                told.append(
                    f"{name!r} has {new_share:.6g} of stage {number} in place of {old_share:.6g}"
                )
    return told


def _stages(plan: Plan) -> str:
    return "1 stage" if len(plan.stages) == 1 else f"{len(plan.stages)} stages"


def diff_plans(before: Plan, after: Plan) -> str:
    """Compare two plans: their stages in words, and a table of what they draw from each domain.

    Args:
        before: a plan.
        after: another plan.

    Returns:
        The lines; the domain of which most samples are added or taken away comes first.
    """
    lines = [f"{told[0].upper()}{told[1:]}." for told in differences(before, after)]
    old, new = before.counts(before.samples), after.counts(after.samples)
    change = {name: new.get(name, 0) - old.get(name, 0) for name in {**old, **new}}
    stages = range(max(len(before.stages), len(after.stages)))
    rows = []
    for name in sorted(change, key=lambda name: (-abs(change[name]), name)):
        shares = [[_share(plan, at, name) for plan in (before, after)] for at in stages]
        if change[name] or any(was != now for was, now in shares):
            cells = [was if was == now else f"{was} -> {now}" for was, now in shares]
            samples = [f"{plan.get(name, 0):,}" for plan in (old, new)]
            rows.append([name, *samples, f"{change[name]:+,}", *cells])
    if rows:
        header = ["domain", "samples before", "samples after", "change"]
        lines.append(table([*header, *(f"share of stage {at + 1}" for at in stages)], rows))
    if rows and (same := len(change) - len(rows)):
        lines.append(f"The other {same:,} domains have the same shares and samples in both.")
    if before.samples == after.samples:
        moved = sum(map(abs, change.values())) / 2 / after.samples
        lines.append(f"{moved:.2%} of the samples go to another domain.")
    if not rows and not differences(before, after):
        lines = ["Both draw the same number of samples of each domain in each stage."]
    return "\n".join(lines)


def _share(plan: Plan, stage: int, name: str) -> str:
    if stage >= len(plan.stages):
        return "-"
    share = plan.stages[stage].weights.get(name)
    return "-" if share is None else f"{share:.4f}"


def show_plan(found: Mapping[str, Any]) -> str:
    """Describe a run before it starts.

    Args:
        found: what `provider.outlook` returned.

    Returns:
        A line about the run, a table of its stages and one of its domains, and lines about the
        bounds, the indices and the start.
    """
    stages, domains = found["stages"], found["domains"]
    parts = "1 stage" if len(stages) == 1 else f"{len(stages)} stages"
    lines = [
        f"{found['run']}: {found['iterations']:,} iterations, {found['samples']:,} samples of "
        f"{found['seq_length']:,} tokens ({amount(found['tokens'])} tokens), in {parts}",
        _order(found),
        "",
        _table_of_stages(found),
        "",
        _table_of_domains(domains, stages),
        "",
    ]
    if not found["computed"]:
        lines.append(
            "NOT COMPUTED: uniform weights stand in the place of weights that are not computed "
            "yet, so the run will draw otherwise; `nemo-chameleon mixture compute` with the same "
            "settings computes them"
        )
    lines += [line for number, s in enumerate(stages, 1) for line in _bounds(number, s)]
    repeats = [name for name, entry in domains.items() if entry["repeats_from"]]
    if repeats:
        lines.append(f"more than one epoch is drawn of {listed(repeats)}")
    unused = [name for name, entry in domains.items() if not entry["samples"]]
    if unused:
        lines.append(f"nothing is drawn of {listed(unused)}")
    return "\n".join([*lines, *_costs(found)])


def _order(found: Mapping[str, Any]) -> str:
    if found["order"] == "megatron":
        return "order: Megatron's blend, made for the whole run"
    bounds = [stage["bound"] for stage in found["stages"] if stage["bound"] is not None]
    within = f"; within {max(bounds):.2f} samples of the shares at any place in a stage"
    return f"order: streams{within if bounds else ''}"


def _table_of_stages(found: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{number} {stage['mixture']}{'' if stage['computed'] else ' (NOT COMPUTED: uniform)'}",
            f"{stage['first']:,}",
            f"{stage['end']:,}",
            f"{stage['end'] / found['samples']:.1%}",
            amount(stage["tokens"]),
            f"{len(stage['domains']):,}",
        ]
        for number, stage in enumerate(found["stages"], 1)
    ]
    header = ["stage", "first sample", "ends before", "share of run", "tokens", "domains"]
    return table(header, rows)


def _table_of_domains(
    domains: Mapping[str, Mapping[str, Any]], stages: Sequence[Mapping[str, Any]]
) -> str:
    several = len(stages) > 1
    header = ["domain", "tokens drawn", "samples", "share", "epochs", "repeats from"]
    header += [f"in stage {number}" for number in range(1, len(stages) + 1)] if several else []
    rows = []
    for name in sorted(domains, key=lambda name: -domains[name]["samples"]):
        entry = domains[name]
        repeats, epochs = entry["repeats_from"], entry["epochs"]
        shares = [stage["domains"].get(name, {}).get("share") for stage in stages]
        rows.append(
            [
                name,
                amount(entry["tokens"]),
                f"{entry['samples']:,}",
                f"{entry['share']:.2%}",
                "-" if epochs is None else f"{epochs:.3g}",
                "-" if repeats is None else f"{repeats['sample']:,} ({repeats['share']:.1%})",
                *(["-" if share is None else f"{share:.2%}" for share in shares] * several),
            ]
        )
    return table(header, rows)


def _bounds(number: int, stage: Mapping[str, Any]) -> list[str]:
    held, most = stage["held"], stage["max_epochs"]
    said = {
        "pin": "pin fixes the share of {}",
        "floor": "floor holds up the share of {}",
        "max_epochs": f"max_epochs={most} holds down {{}}, which reach it at the stage's end",
    }
    lines = [
        f"stage {number}: {words.format(listed(held[bound]))}"
        for bound, words in said.items()
        if held[bound]
    ]
    if stage["exhausted"]:
        lines.append(
            f"stage {number}: nothing is drawn of {listed(stage['exhausted'])}, whose max_epochs "
            "are drawn before"
        )
    return lines


def _costs(found: Mapping[str, Any]) -> list[str]:
    indices, start = found["indices"], found["start"]
    kept = f", beside {size_text(indices['kept'])} of tokens and packs" if indices["kept"] else ""
    return [
        f"training indices: {size_text(indices['size'])} in {indices['folders']:,} "
        f"folder{'s' * (indices['folders'] != 1)} of the cache{kept}",
        f"start of {start['ranks']:,} ranks: {start['calls']:,} metadata calls, "
        f"{start['of_first_rank']:,} of them by the first rank; the data take "
        f"{_time(start['seconds'])} if the indices are built, and {_time(start['making'])} more if "
        "the first rank has to make them (calculated from rates measured on a local disk)",
    ]


def size_text(number: float) -> str:
    """Write a number of bytes with a unit.

    Args:
        number: of bytes.

    Returns:
        For instance "1.5 GB".
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{round(number)} bytes"


def _time(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
