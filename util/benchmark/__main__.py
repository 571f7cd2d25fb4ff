"""What a run costs: `python -m util.benchmark plan ...`."""

from util.benchmark import plan
from util.cli import Parser
from util.error import run


def main(argv: list[str]) -> None:
    """Reads the command line and runs the command."""
    parser = Parser(prog="util.benchmark", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("plan", help="hours, memory and scaling of a run, calculated before it", description=plan.__doc__)
    plan.add_arguments(command)
    command.set_defaults(run=plan.main)
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    run(main)
