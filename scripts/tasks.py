"""List the task families: their shapes, splits, and which suite uses them; or where their data comes from."""

import json
import sys
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from loopwright.inner_tasks.datasets import SOURCES, find_missing
from loopwright.inner_tasks.registry import list_families
from loopwright.inner_tasks.suites import list_suites
from loopwright.inner_tasks.targets import list_calibrated
from loopwright.inner_tasks.task import SPLITS
from loopwright.scripts.run import run


@dataclass
class Config:
    sources: bool = False
    """List the real data instead: packages, extras and licences."""
    json: bool = False
    """Print JSON instead of a table."""


def rows() -> list[dict[str, Any]]:
    """One row per family."""
    calibrated = [name.partition(":")[0] for name in list_calibrated()]
    return [
        {
            "family": name,
            "kind": family.kind,
            "models": [str(model) for model in family.models],
            "parameters": [sum(p.numel() for p in model.build().parameters()) for model in family.models],
            "loss": family.loss,
            "splits": dict(zip(SPLITS, family.sizes, strict=True)),
            "suites": [suite.name for suite in list_suites().values() if name in suite.families],
            "calibrated_tasks": calibrated.count(name),
            "source": family.source,
            "requires": family.requires,
        }
        for name, family in list_families().items()
    ]


def source_rows() -> list[dict[str, Any]]:
    """One row per data source."""
    return [
        {
            "source": name,
            "package": source.package,
            "extra": source.extra,
            "installed": find_missing(name) is None,
            "licence": source.licence,
            "about": source.about,
        }
        for name, source in SOURCES.items()
    ]


def main(config: Config) -> None:
    found = source_rows() if config.sources else rows()
    if config.json:
        print(json.dumps(found, indent=1))
        return
    if config.sources:
        table = Table(Column("source", no_wrap=True), "package", "extra", "installed", "licence", "about")
        for row in found:
            table.add_row(row["source"], row["package"], row["extra"] or "(core)", "yes" if row["installed"] else "no",
                          row["licence"], row["about"])  # fmt: skip
    else:
        headings = ("kind", "models", "parameters", "loss", "train/control/target", "suites", "targets", "source")
        table = Table(Column("family", no_wrap=True), *headings)
        for row in found:
            table.add_row(
                row["family"], row["kind"], "\n".join(row["models"]), "\n".join(map(str, row["parameters"])),
                row["loss"],
                "/".join(str(size) for size in row["splits"].values()), ", ".join(row["suites"]),
                str(row["calibrated_tasks"]), row["source"],
            )  # fmt: skip
    Console(width=max(160, Console().width)).print(table)


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
