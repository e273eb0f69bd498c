"""Training behaviour, one class per method, found by task and model."""
import importlib
import pkgutil

from ppssl.errors import BadRequest


def of_task(task: str) -> list[type]:
    """The methods of a task: every class with a name of its own in the files of this package."""
    from ppssl.methods.base import Method

    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    found, queue = [], [Method]
    while queue:
        queue += (kind := queue.pop(0)).__subclasses__()
        if "name" in vars(kind) and kind.task == task:
            found.append(kind)
    return found


def get(task: str, name: str) -> type:
    """The method of that name."""
    for method in of_task(task):
        if method.name == name:
            return method
    raise BadRequest(f"no {task} method {name}")


def find(task: str, model: str, basemodel: str | None = None) -> type:
    """The method that trains a model. MAE's model names stand for TEC where a base model is given."""
    from ppssl.models import registry

    family = registry.find("pretrain" if task == "pretrain" else "classifier", model).family
    family = "tec" if basemodel and family == "mae" else family
    for method in of_task(task):
        if family in method.families:
            return method
    others = [t for t in ("pretrain", "finetune", "linprobe") if any(family in method.families for method in of_task(t))]
    raise BadRequest(f"{model} has no {task} method: its family, {family}, has {' and '.join(f'main_{t}.py' for t in others)}")


def default_model(task: str, data_path: str) -> str:
    """The model without any --model: the official default on the user's own data, the tiny one on the demo set."""
    names = {"pretrain": ("mae_vit_tiny_patch4", "mae_vit_large_patch16")}.get(task, ("vit_tiny_patch4", "vit_large_patch16"))
    return names[data_path != "demo"]
