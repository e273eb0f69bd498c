"""Recipes: YAML files with the settings of a run, headed by what is known of that run.

The head is the first comment, one `# key: value` a line; an indented line goes on with the value before it. Keys:
about   what is trained on what
ranks   how many GPUs (or CPU processes) the settings are for: with them, the effective batch is the intended one
expected, hardware, time   what came out there, on what, and how long it took; left out where nobody says
source  where settings and figures come from; `this project`: measured here, once
note    anything else
"""
from pathlib import Path

RECIPES = Path(__file__).parent / "recipes"
KEYS = ("about", "ranks", "expected", "hardware", "time", "source", "note")


def names(task: str = "") -> list[str]:
    """The recipes of a task, or all, by the name that -c takes, such as mae/demo_pretrain."""
    return sorted(str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob(f"*{task}.yaml"))


def locate(name: str) -> Path:
    """The file of a recipe: a path as it is, else a name. It need not exist."""
    return Path(name) if Path(name).is_file() else RECIPES / f"{name.removesuffix('.yaml')}.yaml"


def head(path: Path) -> dict[str, str]:
    """The pairs of a recipe's head; those that there are."""
    found, key = {}, ""
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        if line.startswith("#   ") and key:
            found[key] += f" {line[1:].strip()}"
            continue
        key, _, value = (part.strip() for part in line[1:].partition(":"))
        found[key] = value
    return {key: value for key, value in found.items() if key in KEYS}


def ranks(path: Path) -> int | None:
    """How many ranks a recipe is for, None where its head does not say."""
    said = head(path).get("ranks", "")
    return int(said) if said.isdigit() else None
