"""The launch scripts: one for each published recipe, and what they start."""
import os
import re
import subprocess
from pathlib import Path

import pytest

from ppssl import config, recipe
from tests.launching import clean_environment

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(ROOT.glob("scripts/*/*.sh"))
PUBLISHED = [name for name in recipe.names() if "/demo_" not in name]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT / "scripts"))


def run(script: Path | str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", str(ROOT / "scripts" / script), *arguments], env=clean_environment(**environment),
                          capture_output=True, text=True, timeout=300)


def stub(folder: Path, name: str, body: str) -> str:
    """A program of that name in `folder`, written in bash."""
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return str(path)


def launched(tmp_path: Path, script: str, body: str = "", **environment: str):
    """(the finished script, the command lines it started); `body`: what the stand-in for Python does besides noting them."""
    python = stub(tmp_path, "python", f'echo "$*" >> {tmp_path}/started; env > {tmp_path}/environment\n{body}')
    stub(tmp_path, "sleep", "")
    done = run(script, PYTHON=python, OUT=str(tmp_path / "out"), PATH=f"{tmp_path}:{os.environ['PATH']}", **environment)
    started = tmp_path / "started"
    return done, started.read_text().splitlines() if started.exists() else []


def recipe_of(script: Path) -> str:
    return re.search(r"^launch main_\w+\.py -c (\S+)", script.read_text(), re.MULTILINE)[1]


def test_every_published_recipe_has_one_script():
    assert sorted(map(recipe_of, SCRIPTS)) == PUBLISHED


def test_no_two_scripts_write_to_one_folder():
    folders = [re.search(r"OUT:-(\S+)}", script.read_text())[1] for script in SCRIPTS]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("script", [*SCRIPTS, *ROOT.glob("scripts/*.sh")], ids=named)
def test_bash_can_read_a_script(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0


@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_a_dry_run_of_a_script_asks_for_its_recipe(script):
    """With echo for Python: the command line that a dry run would carry out."""
    done = run(script, "--epochs", "7", DRY_RUN="1", PYTHON="echo", DATA="DATA", CKPT="CKPT")
    entry, *arguments = done.stdout.split()
    task = recipe_of(script).rsplit("_", 1)[1]
    settings, stored = config.parse(task, arguments), config.parse(task, ["-c", recipe_of(script)])
    assert entry == f"main_{task}.py" and settings.dry_run and settings.train.epochs == 7
    assert (settings.method, settings.model, settings.train.blr) == (stored.method, stored.model, stored.train.blr)
    assert (settings.data.data_path, settings.run.resume) == ("DATA", "auto")
    assert task == "pretrain" or settings.options.finetune == "CKPT"


@pytest.mark.slow
def test_a_dry_run_of_a_tec_script_says_where_its_base_model_comes_from(tmp_path):
    done = run("tec/pretrain_base_mae_300.sh", DRY_RUN="1", DATA=str(tmp_path), PPSSL_CHECKPOINTS=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"no base model {tmp_path}/mae_pretrain_vit_base.pth: its authors link it at" in done.stdout
    assert "TEC pretraining (tec)" in done.stdout and "--accum_iter 16 would make it" in done.stdout


def test_one_node_is_started_without_a_master_on_the_devices_asked_for(tmp_path):
    done, [command] = launched(tmp_path, "convmae/pretrain_base.sh", DEVICES="0,1")
    assert done.returncode == 0 and "--devices 0,1" in command and "--nnodes" not in command
    assert command.startswith("-m paddle.distributed.launch") and "main_pretrain.py --data_path data/imagenet" in command


@pytest.mark.parametrize("prefix", ["", "PADDLE_"])
def test_several_nodes_are_told_of_each_other(tmp_path, prefix):
    nodes = {f"{prefix}NNODES": "4", f"{prefix}MASTER": "host:1234"}
    _, [command] = launched(tmp_path, "byol/pretrain_resnet50.sh", NODE_RANK="3", **nodes)
    assert "--nnodes 4 --rank 3 --master host:1234" in command


@pytest.mark.parametrize("given, said", [({}, "set NODE_RANK"), ({"NODE_RANK": "0"}, "set MASTER to host:port")])
def test_several_nodes_without_rank_or_master_are_refused(tmp_path, given, said):
    done, started = launched(tmp_path, "mae/pretrain_base.sh", NNODES="2", **given)
    assert done.returncode != 0 and said in done.stderr and not started


def test_a_failed_run_is_started_again_a_few_times(tmp_path):
    done, started = launched(tmp_path, "mae/pretrain_base.sh", "exit 9", TRIES="2")
    assert (done.returncode, len(started)) == (9, 2) and all("--resume auto" in command for command in started)


LOG_DIR = 'while [ "$1" != --log_dir ]; do shift; done'


@pytest.mark.parametrize("log, code", [("error: unknown flag --epoch", 2), ("[Train][Epoch 1/2] ...", 143)])
def test_a_refused_request_and_a_requested_stop_are_not_tried_again(tmp_path, log, code):
    done, started = launched(tmp_path, "mae/pretrain_base.sh", f'{LOG_DIR}; echo "{log}" > "$2/workerlog.0"; exit {code}')
    assert (done.returncode, len(started)) == (code, 1)
    assert ("unknown flag" in done.stderr) == log.startswith("error")


def test_the_launcher_sees_no_more_of_the_environment_than_it_needs(tmp_path):
    launched(tmp_path, "mae/pretrain_base.sh", A_TOKEN="secret", NCCL_DEBUG="INFO")
    seen = (tmp_path / "environment").read_text()
    assert "secret" not in seen and "NCCL_DEBUG=INFO" in seen


def test_finetuning_starts_from_the_newest_checkpoint_of_the_pretraining_script(tmp_path):
    for epoch in (2, 10):
        (tmp_path / f"checkpoint-epoch{epoch:04d}-step{epoch:08d}.safetensors").touch()
    asked = f"source {ROOT}/scripts/launch.sh; newest {tmp_path}; newest {tmp_path}/none"
    newest = subprocess.run(["bash", "-c", asked], capture_output=True, text=True)
    assert newest.stdout.splitlines() == [f"{tmp_path}/checkpoint-epoch0010-step00000010.safetensors", f"{tmp_path}/none"]
    command = run("tec/finetune_large_mae_300.sh", DRY_RUN="1", PYTHON="echo").stdout
    assert "--finetune runs/tec_large_mae_300_pretrain" in command
