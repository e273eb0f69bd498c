"""The catalogue of models: thin functions registered by name."""
import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from ppssl.errors import BadRequest

SCRIPTS = {"pretrain": "main_pretrain.py", "classifier": "main_finetune.py and main_linprobe.py"}          # by task


@dataclass(frozen=True)
class Entry:
    """One registered model. task: what it is built for; family: whose keys its checkpoint has."""
    name: str
    task: str
    family: str
    build: Callable


_ENTRIES: dict[tuple[str, str], Entry] = {}


def register(task: str, family: str, *aliases: str):
    """Decorator: enter a model function under its own name and its aliases."""
    def enter(build: Callable) -> Callable:
        for name in (build.__name__, *aliases):
            if (task, name) in _ENTRIES:
                raise ValueError(f"{task} model {name} is registered twice")
            _ENTRIES[task, name] = Entry(name, task, family, build)
        return build
    return enter


def entries(task: str | None = None) -> list[Entry]:
    """All registered models, of one task or of all, in the order of registration."""
    _load_models()
    return [e for e in _ENTRIES.values() if task in (None, e.task)]


def find(task: str, name: str) -> Entry:
    """The entry of that name. Raises BadRequest naming the nearest known model."""
    _load_models()
    if (task, name) in _ENTRIES:
        return _ENTRIES[task, name]
    for other, scripts in SCRIPTS.items():
        if (other, name) in _ENTRIES:
            raise BadRequest(f"{name} is no {task} model: it is for {scripts}")
    known = [e.name for e in entries(task)]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    raise BadRequest(f"unknown {task} model {name}: {hint}")


def create(task: str, name: str, **kwargs):
    """Build the model of that name; kwargs override its defaults."""
    return find(task, name).build(**kwargs)


def _load_models() -> None:
    """Import every file of this package: the model files register themselves."""
    import ppssl.models

    for module in pkgutil.iter_modules(ppssl.models.__path__):
        importlib.import_module(f"ppssl.models.{module.name}")
