"""Shows an audit log, of an environment's run or of a steered loop: as a table and as a picture."""

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loopwright.envs.episode.ledger_fields import is_steered
from loopwright.envs.loop.errors import LedgerError
from loopwright.envs.loop.ledger import LedgerContent
from loopwright.envs.loop.storage import writing
from loopwright.envs.render import find_changed_fields, plot_plan

OF_RUNS = ("decision", "spent", "saw (most changed)", "changed", "loss: train", "target", "reward", "then")
OF_STEERING = ("decision", "updates", "saw (most changed)", "changed", "loss before", "verdict")


def show_ledger(content: LedgerContent, as_json: bool) -> None:
    """Print the decisions, in words or as JSON."""
    rows = [explain(content, i) for i in range(len(content.entries))]
    if as_json:
        print(json.dumps({"header": content.header, "decisions": rows}))
        return
    header = content.header
    if is_steered(content):
        title = (
            f"{header['steered']} steered by {header['author']['name']}, a decision every {header['every']} iterations"
        )
        table = Table(*OF_STEERING, title=escape(title))
    else:
        title = (f"{header['task']}, seed {header['seed']}, by {header['author']['name']}; "
                 f"budget {header['budget']:.0f} geq, target {header['target']:.4g}")  # fmt: skip
        table = Table(*OF_RUNS, title=escape(title))
    for row in rows:
        spent = {} if is_steered(content) else {"spent": f"{row['spent']:.0%}", "reward": f"{row['reward']:+.3f}"}
        table.add_row(*(escape(str(value)) for value in (row | spent).values()))
    Console(width=max(150, Console().width)).print(table)


def explain(content: LedgerContent, number: int) -> dict[str, Any]:
    """One decision in words."""
    entry = content.entries[number]
    before = content.entries[number - 1]["observation"] if number else None
    steered = is_steered(content)
    found = {
        "decision": entry["decision"],
        "updates" if steered else "spent": entry["updates"] if steered else entry["cost"] / content.header["budget"],
        "saw": _find_most_changed(before, entry["observation"]),
        "changed": _describe_changes(entry["plan_before"], entry["plan"]),
    }
    if steered:
        loss = "-" if entry["telemetry"] is None else _say_number(entry["telemetry"]["loss"])
        return found | {"loss_before": loss, "then": entry["verdict"]}
    return found | {
        "train_loss": _say_number(entry["telemetry"]["loss"]),
        "target_loss": _say_number(entry["loss"]),
        "reward": entry["reward"],
        "then": entry["outcome"] if entry["verdict"] == "fine" else f"{entry['verdict']}: restored, {entry['outcome']}",
    }


def draw_ledger(content: LedgerContent, path: Path) -> None:
    """Write a picture of the loss and of what was changed; ``path`` says by its ending of which kind.

    Raises ``LedgerError`` for a ledger without decisions.
    """
    from matplotlib.figure import Figure  # slow to load, and only to draw

    if not content.entries:
        raise LedgerError("the ledger holds no decision to draw")
    entries, steered = content.entries, is_steered(content)
    at = [entry["updates"] if steered else entry["cost"] for entry in entries]
    loss = [float((entry["telemetry"] or {}).get("loss", math.nan)) for entry in entries]  # "inf" among them
    plans = [{k: math.inf if v == "inf" else v for k, v in entry["plan"].items()} for entry in entries]
    fields = find_changed_fields(plans)
    figure = Figure(figsize=(8, 3 + 0.7 * len(fields)), layout="constrained")
    rows = figure.subplots(1 + len(fields), 1, sharex=True, height_ratios=[4] + [1] * len(fields))
    rows[0].plot(at, loss, marker=".")
    rows[0].set(yscale="log", ylabel="training loss")
    rows[0].set_title(content.header["steered" if steered else "task"], parse_math=False)
    for axes, field in zip(rows[1:], fields, strict=True):
        plot_plan(axes, at, [plan[field] for plan in plans], field, where="post" if steered else "pre")
    rows[-1].set_xlabel("updates" if steered else "cost (geq)")
    with writing(path if path.suffix else path.with_suffix(".png")) as beside:
        figure.savefig(beside)


def _find_most_changed(before: dict[str, float] | None, now: dict[str, float] | None) -> str:
    """The three features, apart from the plan, that moved most since the decision before."""
    if now is None:
        return "nothing: it does not look"
    names = [name for name in now if not name.startswith("plan_") and name not in ("decisions", "budget_left")]
    old = before or {}
    names.sort(key=lambda name: -abs(now[name] - old.get(name, 0.0)))
    return ", ".join(f"{name} {now[name]:+.2f}" for name in names[:3])


def _describe_changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    said = {name: (_say_number(before[name]), _say_number(after[name])) for name in after}
    return ", ".join(f"{name} {old} -> {new}" for name, (old, new) in said.items() if old != new) or "-"


def _say_number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
