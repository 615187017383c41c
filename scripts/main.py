"""loopwright: one entry point for every command. Errors in what was asked are one line, without a traceback."""

import sys
from importlib import import_module

from loopwright.scripts.ending import run_to_end

COMMANDS = {
    "demo": "train an agent for a few minutes and evaluate it on tasks it never saw",
    "train": "train a controller on a suite",
    "rllib": "train a controller with Ray's RLlib",
    "ensemble": "put several trainings together as one policy",
    "switch": "make one policy of two, of which a feature says which acts",
    "evaluate": "evaluate saved policies against what people would use instead",
    "compare": "compare two methods whose runs are on record",
    "scaling": "say how an evaluation would be divided among many workers",
    "tasks": "list the task families, or the sources of their data",
    "replay": "execute an audit log again, or show it",
    "bench": "measure the engine's speed",
    "calibrate": "find the targets of a suite's tasks",
    "programs": "train real programs with and without a policy attached",
    "prices": "measure what an update of each optimizer costs",
    "scores": "train every family with default AdamW, and write docs/tasks.md",
    "tune": "tune the competitors on the training suite",
}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: loopwright COMMAND [OPTIONS]; COMMAND --help lists the options\n")
        print("\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items()))
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}; known: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return run_to_end(lambda: load_and_run(name, rest))


def load_and_run(name: str, arguments: list[str]) -> int:
    """Loading takes seconds, and can be ended as well."""
    run = import_module("loopwright.scripts.run").run
    status: int = run(import_module(f"loopwright.scripts.{name}"), arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
