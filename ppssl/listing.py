"""What `--list` prints: the recipes of a task and its models."""
from itertools import groupby
from operator import attrgetter

from ppssl import methods, recipe
from ppssl.config import Config, parse
from ppssl.models import registry

COLUMNS = ("recipe", "model", "epochs", "batch", "expected", "source")
FOOT = "Run one with -c RECIPE. Expected figures are those of the source; `this project`: measured here, one seed."


def listing(task: str) -> str:
    """The recipes of a task as a table, then the models by family."""
    rows = [row(name, parse(task, ["-c", name])) for name in recipe.names(task)]
    return "\n".join([*table([COLUMNS, *rows]), "", FOOT, "", "models:", *models(task)])


def row(name: str, config: Config) -> tuple[str, ...]:
    """A recipe in the table's columns. batch: images of an optimizer step on the ranks that the recipe is for."""
    path = recipe.locate(name)
    head, batch, ranks = recipe.head(path), config.train.batch_size * config.train.accum_iter, recipe.ranks(path)
    return (name, config.model, str(config.train.epochs), str(batch * ranks) if ranks else f"{batch} a rank",
            head.get("expected", ""), head.get("source", ""))


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines, every column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def models(task: str) -> list[str]:
    """A line for each family of models that the task trains, aliases included."""
    trained = {family for method in methods.of_task(task) for family in method.families}
    entries = [e for e in registry.entries("pretrain" if task == "pretrain" else "classifier") if e.family in trained]
    grouped = groupby(sorted(entries, key=attrgetter("family")), attrgetter("family"))
    return [f"  {family:<12}{', '.join(e.name for e in members)}" for family, members in grouped]
