"""The command plan: show, build and compare what a run will draw."""

import argparse
import contextlib
import json
import sys

from nemo_chameleon.cli.parsing import Parsers, add_command, add_configuration, at_least_one, show
from nemo_chameleon.config.places import require_name
from nemo_chameleon.utils.errors import UserError


def add_plan_commands(commands: Parsers) -> None:
    """Add plan with its actions.

    Args:
        commands: the parsers of all commands.
    """
    text = "show, build and compare what a run will draw, before it costs anything"
    plan = add_command(commands, "plan", None, text, "plan show mine.yaml --ranks 64")
    actions = plan.add_subparsers(required=True, metavar="ACTION")

    text = "show the samples of each domain and stage, the bounds, and what the start costs"
    example = "plan show mine.yaml data.max_epochs=4 --ranks 64"
    shown = add_command(actions, "show", _show, text, example)
    add_configuration(shown)
    text = "ranks whose start is calculated (default: %(default)s)"
    shown.add_argument("--ranks", type=int, default=8, metavar="N", help=text)
    text = "print one JSON object instead, for scripts (default: text and tables)"
    shown.add_argument("--json", action="store_true", help=text)
    text = "also draw the domains' shares over the run (default: no picture)"
    shown.add_argument("--picture", metavar="FILE.svg", help=text)

    text = "make all indices of a run beforehand, so that no GPU waits for them"
    example = "plan build mine.yaml data.mixture=uniform --processes 2"
    built = add_command(actions, "build", _build, text, example)
    add_configuration(built)
    text = "processes that make indices (default: as many as there are cores)"
    built.add_argument("--processes", type=int, metavar="N", help=text)

    text = "show what two configurations, or a run and a configuration, draw differently"
    example = "plan diff mine.yaml other.yaml"
    diff = add_command(actions, "diff", _diff, text, example)
    text = "YAML file of a configuration, or folder of a run or of one of its checkpoints"
    diff.add_argument("before", metavar="A", help=text)
    diff.add_argument("after", metavar="B", help="the same, of what A is compared with")
    text = "setting that replaces those of both files, such as train.seed=5 (default: none)"
    diff.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=text)


def _show(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.config import load_config
    from nemo_chameleon.mixture.plan_picture import draw_shares
    from nemo_chameleon.mixture.plan_tables import show_plan
    from nemo_chameleon.provider.outlook import outlook

    at_least_one("--ranks", arguments.ranks)
    picture = arguments.picture
    if picture is not None:
        require_name(picture, "--picture", "shares.svg")
        if not picture.endswith(".svg"):
            raise UserError(f"--picture {picture} must end in .svg")
    # Scripts read nothing but the object from stdout.
    with contextlib.redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        found = outlook(load_config(arguments.config, arguments.overrides), arguments.ranks)
    show(json.dumps(found, indent=2) if arguments.json else show_plan(found))
    if picture is not None:
        draw_shares(found, picture)


def _build(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.config import load_config
    from nemo_chameleon.mixture.plan_tables import size_text
    from nemo_chameleon.provider.building import build
    from nemo_chameleon.utils.workers import usable_cores

    at_least_one("--processes", arguments.processes)
    config = load_config(arguments.config, arguments.overrides)
    made = build(config, arguments.processes or usable_cores())
    if made.files:
        show(f"made {made.files:,} files with {size_text(made.size)} in {config.data.cache}")
    else:
        show(f"nothing had to be made: {config.data.cache} has all that the run draws from")


def _diff(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.provider.comparing import compare_plans, drawn_by

    before, after = (
        drawn_by(place, arguments.settings) for place in (arguments.before, arguments.after)
    )
    show(compare_plans(before, after))
