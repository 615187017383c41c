"""List the task families: their shapes, splits, where their data comes from, and which suite uses them."""

import json
import sys
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from loopwright.inner_tasks.suites import suites
from loopwright.inner_tasks.targets import calibrated_names
from loopwright.inner_tasks.task import SPLITS, families
from loopwright.scripts.run import run


@dataclass
class Config:
    json: bool = False
    """Print JSON instead of a table."""


def rows() -> list[dict[str, Any]]:
    """One row per family."""
    calibrated = [name.partition(":")[0] for name in calibrated_names()]
    return [
        {
            "family": name,
            "kind": family.kind,
            "model": str(family.model),
            "parameters": sum(p.numel() for p in family.model.build().parameters()),
            "splits": dict(zip(SPLITS, family.sizes, strict=True)),
            "suites": [suite.name for suite in suites().values() if name in suite.families],
            "calibrated_tasks": calibrated.count(name),
            "source": family.source,
        }
        for name, family in families().items()
    ]


def main(config: Config) -> None:
    if config.json:
        print(json.dumps(rows(), indent=1))
        return
    table = Table(title="task families")
    for heading in ("family", "kind", "model", "parameters", "train/control/target", "suites", "targets", "source"):
        table.add_column(heading)
    for row in rows():
        splits = "/".join(str(size) for size in row["splits"].values())
        table.add_row(row["family"], row["kind"], row["model"], str(row["parameters"]), splits,
                      ", ".join(row["suites"]), str(row["calibrated_tasks"]), row["source"])  # fmt: skip
    Console(width=max(120, Console().width)).print(table)


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
