"""The shell commands, really run: in a copy of what they need, in a folder whose name has a space, from another folder."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import supervised
from dataset.stage import main as stage
from engine.launch import choose_port
from tests.conftest import make_tiny
from util import checkpoint
from util.error import UserError

ROOT = Path(__file__).resolve().parents[2]
METHOD = """
import json, os, sys
from pathlib import Path
names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
if os.environ["RANK"] == "0":
    Path("seen.json").write_text(json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd(), **{k: os.environ[k] for k in names}}))
code = int(os.environ.get("CODE", "0"))
if code == 2:
    print("error: one line", file=sys.stderr)
sys.exit(code)
"""
# stands in for a Python without the requirements; VENV and INSTALL are what making .venv and pip do
PYTHON = """case "$1 $2" in
"scripts/check_requirements.py "*) [ -e installed ] && exit 0; echo "missing: torch"; exit 1 ;;
"-c "*) exit 0 ;;
"-m venv") VENV; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
"-m pip") case $3 in install) INSTALL ;; esac ;;
esac"""


# what Slurm does with a job on one node
ON_ONE_NODE = {"srun": 'while [ "${1#--}" != "$1" ]; do shift; done; SLURM_NODEID=0 exec "$@"', "scontrol": "echo localhost"}


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with the scripts and one method that records how it was called."""
    folder = tmp_path / "a clone's folder"
    for name in ("scripts", "util", "model", "dataset", "engine", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.txt", "requirements-extra.txt", "requirements-dev.txt", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "unimatch_v2.py").write_text(METHOD)
    return folder


def sh(script: Path, *args: str, path: str = "", cwd: str | Path = "/", **env: str) -> "subprocess.CompletedProcess[str]":
    """Runs a script from another folder with this test's Python first on the PATH, or with `path` as the PATH."""
    full = {k: v for k, v in os.environ.items() if k not in ("dataset", "method", "split", "exp", "config", "save_path", "task")}
    full["PATH"] = path or f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["sh", str(script), *args]
    return subprocess.run(command, cwd=cwd, env=full | env, capture_output=True, text=True, timeout=100)


def tools(folder: Path, **commands: str) -> str:
    """A PATH with the basic tools and the given commands (shell scripts) only: no Python unless given."""
    folder.mkdir()
    for name in ("sh", "dirname", "sed", "tr", "mkdir", "cat", "rm", "cp", "env", "head"):
        (folder / name).symlink_to(shutil.which(name) or name)
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "num_gpu: found ''"),
        (("two", "29500"), "num_gpu: found 'two'"),
        (("0", "29500"), "num_gpu: found '0'"),
        (("2",), "port: found ''"),
        (("2", "-1"), "port: found '-1'"),
    ],
)
def test_train_says_how_it_is_used(args: tuple[str, ...], words: str) -> None:
    done = sh(ROOT / "scripts/train.sh", *args)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sh scripts/train.sh <num_gpu> <port>")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_train_passes_everything_on(repo: Path) -> None:
    done = sh(repo / "scripts/train.sh", "2", "0", "--set", "data_root=my data", dataset="camvid", split="1_8")
    assert (done.returncode, done.stderr) == (0, "")
    seen = json.loads((repo / "seen.json").read_text())
    assert seen["cwd"] == str(repo)
    assert seen["WORLD_SIZE"] == "2"
    save = "exp/camvid/unimatch_v2/dinov2_tiny/1_8"
    assert seen["argv"] == [
        *("--config=configs/camvid.yaml", "--labeled-id-path", "splits/camvid/1_8/labeled.txt"),
        *("--unlabeled-id-path", "splits/camvid/1_8/unlabeled.txt", "--save-path", save, "--port", "0", "--set", "data_root=my data"),
    ]


@pytest.mark.parametrize(
    ("env", "config", "backbone"),
    [
        ({"dataset": "pascal"}, "configs/unimatch_v1/pascal.yaml", "resnet101"),
        ({"dataset": "camvid"}, "configs/camvid.yaml", "dinov2_tiny"),  # it has none of its own there
        ({"config": "configs/pascal.yaml"}, "configs/pascal.yaml", "dinov2_base"),
    ],
)
def test_a_recipe_of_the_method_s_own_comes_first(repo: Path, env: dict[str, str], config: str, backbone: str) -> None:
    (repo / "unimatch_v1.py").write_text(METHOD)
    assert sh(repo / "scripts/train.sh", "1", "0", method="unimatch_v1", split="92", **env).returncode == 0
    argv = json.loads((repo / "seen.json").read_text())["argv"]
    assert argv[0] == f"--config={config}"
    assert f"exp/{env.get('dataset', 'pascal')}/unimatch_v1/{backbone}/92" in argv


def test_each_method_of_a_sweep_has_its_own_recipe(repo: Path) -> None:
    """What the environment gives counts for all."""
    write_pairs(repo, "92")
    (repo / "configs/supervised").mkdir()
    (repo / "configs/supervised/pascal.yaml").write_text("dataset: pascal\nbackbone: dinov2_small\n")
    shutil.copy(repo / "unimatch_v2.py", repo / "supervised.py")
    env = {"dataset": "pascal", "split": "92"}
    own = "--config=configs/supervised/pascal.yaml", "exp/pascal/supervised/dinov2_small/92"
    shared = "--config=configs/pascal.yaml", "exp/pascal/unimatch_v2/dinov2_base/92"
    for method, expected in (("supervised", own), ("unimatch_v2", shared)):
        assert sh(repo / "scripts/train.sh", "1", "0", method=method, **env).returncode == 0
        argv = json.loads((repo / "seen.json").read_text())["argv"]
        assert (argv[0], argv[argv.index("--save-path") + 1]) == expected
    jobs = sh(repo / "scripts/slurm_train.sh", "--dry-run", "1", "29500", "gpu", method="unimatch_v2 supervised", **env).stdout
    for config, folder in (own, shared):
        assert f"\nconfig='{config.removeprefix('--config=')}'\n" in jobs
        assert f"\nsave_path='{folder}'\n" in jobs
    given = sh(repo / "scripts/slurm_train.sh", "--dry-run", "1", "29500", "gpu", method="supervised", config="configs/pascal.yaml", **env)
    assert "\nconfig='configs/pascal.yaml'\n" in given.stdout


def test_train_leaves_the_lists_to_a_config_that_names_them(repo: Path) -> None:
    assert sh(repo / "scripts/train.sh", "1", "0", dataset="coco_extra", split="all").returncode == 0
    save = "exp/coco_extra/unimatch_v2/dinov2_base/all"
    assert json.loads((repo / "seen.json").read_text())["argv"] == ["--config=configs/coco_extra.yaml", "--save-path", save, "--port", "0"]


@pytest.mark.parametrize(
    ("line", "name"),
    [("dataset: street # mine", "street"), ("dataset: 'my street'\r", "my street"), ("dataset_l: ade20k\ndataset_u: coco", "ade20k")],
)
def test_data_set_and_encoder_come_from_the_config(repo: Path, line: str, name: str) -> None:
    (repo / "own.yaml").write_text(f"{line}\nbackbone: dinov2_large\n")
    other, timm = ("--set", "backbone=dinov2_giant"), ("--set", "backbone=timm/resnet50")
    for settings, backbone in (((), "dinov2_large"), (other, "dinov2_giant"), (timm, "timm_resnet50")):
        job = sh(repo / "scripts/slurm_train.sh", "--dry-run", "1", "29500", "gpu", *settings, config="own.yaml", split="1_4").stdout
        assert f"\ndataset='{name}'\n" in job
        assert f"\nsave_path='exp/{name}/unimatch_v2/{backbone}/1_4'\n" in job


def test_a_config_that_the_scripts_cannot_read_is_named(repo: Path) -> None:
    (repo / "own.yaml").write_text("dataset : street\n")
    done = sh(repo / "scripts/train.sh", "1", "0", config="own.yaml")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "own.yaml: found no line that begins with 'dataset:'" in done.stderr


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"seeds": "0 1 0"}, "seeds: found '0' twice"),
        ({"seeds": "0 a"}, "seeds: found 'a', expected whole numbers"),
        ({"split": "92 92"}, "split: found '92' twice"),
        ({"method": "supervised supervised"}, "method: found 'supervised' twice"),
    ],
)
def test_a_sweep_is_checked_before_its_first_run(repo: Path, env: dict[str, str], words: str) -> None:
    write_pairs(repo, "92")
    done = sh(repo / "scripts/train.sh", "1", "0", **({"split": "92"} | env))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert words in done.stderr
    assert not (repo / "seen.json").exists()


@pytest.mark.parametrize("script", ["train.sh", "slurm_train.sh"])
@pytest.mark.parametrize("env", [{"dataset": "kitti"}, {"config": "configs/kitti.yaml"}])
def test_a_missing_config_is_named_at_once(script: str, env: dict[str, str]) -> None:
    done = sh(ROOT / f"scripts/{script}", "1", "29500", "gpu", **env)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: configs/kitti.yaml: no such config file; name one with config=FILE")


def test_a_config_beside_the_caller_is_named_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("dataset: own\n")
    done = sh(ROOT / "scripts/train.sh", "1", "29500", cwd=tmp_path, config="c.yaml")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"no such config file in {ROOT}, where relative paths start; give config={tmp_path}/c.yaml" in done.stderr


@pytest.mark.parametrize(("code", "line"), [("2", "error: one line\n"), ("5", "error: rank 0 ended with exit code 5\n")])
def test_train_keeps_the_exit_code(repo: Path, code: str, line: str) -> None:
    done = sh(repo / "scripts/train.sh", "1", "0", CODE=code, save_path="exp/a b")
    assert (done.returncode, done.stderr) == (int(code), line)


def test_train_names_an_unknown_method(repo: Path) -> None:
    done = sh(repo / "scripts/train.sh", "1", "0", method="unimatch")
    assert (done.returncode, done.stderr) == (2, "error: unimatch.py: no such file; expected a method such as unimatch_v2.py\n")


def test_train_without_requirements_says_what_to_run(repo: Path, tmp_path: Path) -> None:
    done = sh(repo / "scripts/train.sh", "1", "0", path=tools(tmp_path / "bin", python3=PYTHON))
    assert done.returncode == 2
    assert done.stderr == "error: no Python that satisfies requirements.txt (python3: missing: torch); run: sh scripts/setup.sh\n"
    assert not (repo / ".venv").exists()


def test_setup_uses_this_python_and_installs_nothing(repo: Path) -> None:
    done = sh(repo / "scripts/setup.sh", "requirements-dev.txt")
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).resolve() == Path(sys.executable).resolve()
    assert not (repo / ".venv").exists()


def test_setup_needs_a_new_enough_python(repo: Path, tmp_path: Path) -> None:
    done = sh(repo / "scripts/setup.sh", path=tools(tmp_path / "bin", python3='echo "Python 3.8, needs 3.10 or newer"; exit 3'))
    assert done.returncode == 2
    assert done.stderr.startswith("error: no Python 3.10 or newer found (python3: Python 3.8, needs 3.10 or newer); install one")
    none = sh(repo / "scripts/setup.sh", path=tools(tmp_path / "bin2"))
    assert none.stderr.startswith("error: no Python 3.10 or newer found (neither python3 nor python exists); install one")


def test_setup_makes_a_venv_where_it_must(repo: Path, tmp_path: Path) -> None:
    path = tools(tmp_path / "bin", python3=PYTHON.replace("VENV", ":").replace("INSTALL", 'echo "$@" >installed'))
    done = sh(repo / "scripts/setup.sh", path=path)
    assert done.returncode == 0, done.stderr
    assert "making" in done.stderr
    assert (repo / "installed").read_text().split()[-4:] == ["-r", "requirements.txt", "-c", "constraints.txt"]
    again = sh(repo / "scripts/setup.sh", path=path)
    assert (again.returncode, again.stderr) == (0, "")


@pytest.mark.parametrize(("broken", "words"), [("VENV", "python3 -m venv failed"), ("INSTALL", "pip could not install")])
def test_setup_says_what_failed(repo: Path, tmp_path: Path, broken: str, words: str) -> None:
    path = tools(tmp_path / "bin", python3=PYTHON.replace(broken, "exit 1").replace("VENV", ":").replace("INSTALL", ":"))
    done = sh(repo / "scripts/setup.sh", path=path)
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]


def test_slurm_dry_run_prints_the_job() -> None:
    args = ("16", "29500", "gpu", "--set", "data_root=my data", "--dry-run")
    done = sh(ROOT / "scripts/slurm_train.sh", *args, dataset="cityscapes", split="1_16", sbatch_args="--time=24:00:00 -A vision")
    assert (done.returncode, done.stderr) == (0, "")
    for line in ("--nodes=2", "--gres=gpu:8", "--partition=gpu", "--requeue", "--signal=B:USR1@120", "--open-mode=append"):
        assert f"#SBATCH {line}\n" in done.stdout
    assert '#SBATCH --output="exp/cityscapes/unimatch_v2/dinov2_base/1_16/slurm-%j.log"\n' in done.stdout
    assert "# submitted with: sbatch --time=24:00:00 -A vision\n" in done.stdout
    assert "'8' '29500' '--set' 'data_root=my data'" in done.stdout
    subprocess.run(["sh", "-n"], input=done.stdout, text=True, check=True)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("4", "29500"), "partition: found ''"),
        (("4", "x", "gpu"), "port: found 'x'"),
        (("9", "29500", "gpu"), "9 GPUs do not spread evenly over 2 nodes"),
        (("4", "29500", "gpu"), "sbatch: not found"),
    ],
)
def test_slurm_user_errors(repo: Path, tmp_path: Path, args: tuple[str, ...], words: str) -> None:
    done = sh(repo / "scripts/slurm_train.sh", *args, path=tools(tmp_path / "bin"))
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_slurm_submits_a_job_that_trains(repo: Path, tmp_path: Path) -> None:
    """sbatch, srun and scontrol are stand-ins: the first keeps the job, the others do what Slurm would on one node."""
    words = {
        "sbatch": f'echo "$@" >"{tmp_path}/options"; cat >"{tmp_path}/job"',
        **ON_ONE_NODE,
    }
    path = tools(tmp_path / "bin", **words) + f":{Path(sys.executable).parent}:{os.environ['PATH']}"
    arguments = ("1", str(choose_port(0)), "gpu", "--set", "a=it's")
    early = sh(repo / "scripts/slurm_train.sh", *arguments, path=path)
    assert early.returncode == 2
    assert "splits/pascal/366/labeled.txt: no such list" in early.stderr
    assert not (tmp_path / "job").exists()
    write_pairs(repo, "366")
    done = sh(repo / "scripts/slurm_train.sh", *arguments, path=path, sbatch_args="--time=1:00 -A lab")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "options").read_text() == "--time=1:00 -A lab\n"
    env = os.environ | {"PATH": path, "SLURM_JOB_NODELIST": "n1", "SLURM_CPUS_PER_TASK": "2", "CODE": "3"}
    job = subprocess.run(["sh", str(tmp_path / "job")], cwd=repo, env=env, capture_output=True, text=True, timeout=60)
    assert job.returncode == 3, job.stderr
    assert "a=it's" in (repo / "seen.json").read_text()


def test_test_sh_stops_at_the_first_failing_tool(repo: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    fake = f'case "$*" in *check_requirements*) exit 0 ;; esac; echo "$@" >>"{log}"; case "$*" in "-m mypy") exit 7 ;; esac'
    done = sh(repo / "scripts/test.sh", path=tools(tmp_path / "bin", python3=fake))
    assert done.returncode == 7
    assert log.read_text() == "-m ruff check .\n-m ruff format --check .\n-m mypy\n"


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"NNODES": "two"}, "NNODES: found 'two'"),
        ({"NNODES": "2", "NODE_RANK": "0"}, "NNODES: found 2 without NODE_RANK (0 to 1, another on each node) and MASTER_ADDR"),
        ({"MAX_RESTARTS": "-1"}, "MAX_RESTARTS: found '-1'"),
    ],
)
def test_train_names_what_several_nodes_need(repo: Path, env: dict[str, str], words: str) -> None:
    done = sh(repo / "scripts/train.sh", "1", "29500", **env)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_slurm_job_without_gpus_and_with_few_on_each_node() -> None:
    args = ("4", "29500", "cpu", "--dry-run")
    done = sh(ROOT / "scripts/slurm_train.sh", *args, gres="none", gpus_per_node="2", cpus_per_gpu="1", stage_data="$TMPDIR/data")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--gres" not in done.stdout
    assert "#SBATCH --nodes=2\n" in done.stdout
    assert 'stage_data="$TMPDIR/data"\n' in done.stdout, "expanded on the node"
    named = sh(ROOT / "scripts/slurm_train.sh", *args, gres="gpu:a100:4", gpus_per_node="4").stdout
    assert "#SBATCH --gres=gpu:a100:4\n" in named


def test_train_reads_a_copy_of_the_data_and_copies_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real scripts and a real short run, from another folder, with spaces in every path; then only the copy is there."""
    data = make_tiny(tmp_path / "shared disk")
    target = tmp_path / "node's disk"
    extra = [f"--labeled-id-path={data.root}/labeled.txt", f"--unlabeled-id-path={data.root}/unlabeled.txt", "--set", "epochs=1"]
    env = {"config": str(data.config), "save_path": str(tmp_path / "my run"), "stage_data": str(target), "OMP_NUM_THREADS": "1"}
    done = sh(ROOT / "scripts/train.sh", "2", "0", *extra, **env)
    assert done.returncode == 0, done.stderr
    assert f"{target}: 32 files, 32 of them copied now" in done.stderr, "6 + 4 pairs of image and mask, 12 images"
    assert checkpoint.load(tmp_path / "my run/latest.pth")["config"]["data_root"] == str(target)
    stage([str(target), "--config", str(data.config), "--save-path", "x", *extra])
    assert f"{target}: 32 files, 0 of them copied now" in capsys.readouterr().err
    (data.root / "images/7.jpg").unlink()
    missing = sh(ROOT / "scripts/train.sh", "1", "0", *extra, **env)
    assert missing.returncode == 2
    assert missing.stderr.splitlines()[-1].startswith(f"error: {data.root}/images/7.jpg: no such file")


# stands in for the launcher and a method: the run's log at once
SWEPT = """
import os, sys
from pathlib import Path
method, words = [(Path(w).stem, sys.argv[i + 2:]) for i, w in enumerate(sys.argv) if w.endswith(".py") and i][0]
args = dict(zip(words[::2], words[1::2]))
folder = Path(args["--save-path"])
chosen = [b for a, b in zip(words, words[1:]) if a == "--set"]
with open("calls.txt", "a") as file:
    print(method, folder, *chosen, file=file)
if os.environ.get("FAIL") == str(folder):
    sys.exit(3)
folder.mkdir(parents=True, exist_ok=True)
seed = int(chosen[0].removeprefix("seed="))
stamp = "[2026-01-01 00:00:00,000][    INFO] "
header = {"backbone": "dinov2_small", "dataset": "pascal", "epochs": 1, "save_path": str(folder), "seed": seed}
lines = [str(header | {"labeled_id_path": args["--labeled-id-path"]}) + "\\n"]
lines += ["===========> Epoch: 0, Previous best: 0.00 @epoch-0, EMA: 0.00 @epoch-0"]
lines += [f"***** Evaluation original ***** >>>> MeanIoU: 60.00, EMA: {70 + seed:.2f}\\n"]
(folder / "train.log").write_text("".join(stamp + line + "\\n" for line in lines))
"""


def write_pairs(repo: Path, *splits: str) -> None:
    """Lists of one line, and the files of two methods."""
    for split in splits:
        folder = repo / f"splits/pascal/{split}"
        folder.mkdir(parents=True)
        for name in ("labeled", "unlabeled"):
            (folder / f"{name}.txt").write_text("a b\n")
    (repo / "supervised.py").touch()


def test_train_runs_seeds_splits_and_methods(repo: Path) -> None:
    (repo / "engine/launch.py").write_text(SWEPT)
    write_pairs(repo, "92")
    train = repo / "scripts/train.sh"
    lists = {"split": "92", "method": "supervised unimatch_v2", "seeds": "0 2"}
    folders = [f"exp/pascal/{method}/dinov2_base/92/seed{seed}" for method in ("supervised", "unimatch_v2") for seed in (0, 2)]
    expected = [f"{folder.split('/')[2]} {folder} seed={folder[-1]} epochs=1" for folder in folders]
    first = sh(train, "1", "0", "--set", "epochs=1", FAIL=folders[2], **lists)
    assert first.returncode == 3
    assert (repo / "calls.txt").read_text().splitlines() == expected[:3]  # stops at the run that fails
    again = sh(train, "1", "0", "--set", "epochs=1", **lists)
    assert again.returncode == 0, again.stderr
    assert (repo / "calls.txt").read_text().splitlines()[3:] == expected  # finished ones too: they know whether the settings are theirs
    assert re.search(r"\| 71\.0 ± 1\.4 \(2\)", again.stdout), again.stdout  # mean of 70 and 72, their deviation and number
    assert again.stdout.endswith("Curves, and links to the pages of the runs: exp/pascal/sweep.html\n")
    assert "Methods compared" in (repo / "exp/pascal/sweep.html").read_text()
    named = sh(train, "1", "0", exp="small", **lists)
    assert named.stdout.endswith("the pages of the runs: exp/pascal/sweep_small.html\n"), "the page of the other sweep stays"
    assert (repo / "exp/pascal/sweep_small.html").exists()
    both = sh(train, "1", "0", split="92 183", save_path="exp/one")
    assert both.returncode == 2
    assert "save_path: found one folder for 2 runs" in both.stderr


def test_slurm_gets_a_job_for_each_seed_split_and_method(repo: Path, tmp_path: Path) -> None:
    (repo / "engine/launch.py").write_text(SWEPT)
    write_pairs(repo, "92", "it's")
    words = {
        "sbatch": f'cat >"{tmp_path}/job$(date +%s%N)"; echo Submitted',
        **ON_ONE_NODE,
    }
    path = tools(tmp_path / "bin", **words) + f":{Path(sys.executable).parent}:{os.environ['PATH']}"
    lists = {"split": "92 it's", "method": "supervised unimatch_v2", "seeds": "0 2", "path": path}
    slurm = repo / "scripts/slurm_train.sh"
    done = sh(slurm, "1", "29500", "gpu", "--set", "epochs=1", **lists)
    assert (done.returncode, done.stderr) == (0, "")
    runs = [(m, s, seed) for m in ("supervised", "unimatch_v2") for s in ("92", "it's") for seed in ("0", "2")]
    folders = [f"exp/pascal/{m}/dinov2_base/{s}/seed{seed}" for m, s, seed in runs]
    jobs = sorted(tmp_path.glob("job*"))
    for number, (job, run, folder) in enumerate(zip(jobs, runs, folders, strict=True)):
        text = job.read_text()
        assert f'#SBATCH --job-name="{run[0]}-pascal-{run[1]}-seed{run[2]}"\n' in text
        assert f'#SBATCH --output="{folder}/slurm-%j.log"\n' in text
        assert f"'{29500 + number}' '--set' 'seed={run[2]}'" in text, "jobs may share a node"
        # the job's environment is that of the submission
        env = {**os.environ, "PATH": path, "SLURM_JOB_NODELIST": "n1", "SLURM_CPUS_PER_TASK": "2", "split": "92 it's", "seeds": "0 2"}
        subprocess.run(["sh", str(job)], cwd=repo, env=env, capture_output=True, check=True, timeout=60)
    assert (repo / "calls.txt").read_text().splitlines() == [
        f"{run[0]} {folder} seed={run[2]} epochs=1" for run, folder in zip(runs, folders, strict=True)
    ]
    report = done.stdout.splitlines()[-1].removeprefix("their table: ")
    # split as a shell does it with what somebody pastes
    table = subprocess.run(shlex.split(report), cwd=repo, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60)
    # two methods and two splits, each over both seeds: the best epoch and the last one
    assert table.stdout.count("± 1.4 (2)") == 8, table.stdout + table.stderr
    shown = sh(slurm, "1", "29500", "gpu", "--dry-run", **lists)
    assert shown.stdout.count("#!/bin/sh\n") == len(runs)
    assert len(list(tmp_path.glob("job*"))) == len(runs)
    missing = sh(slurm, "1", "29500", "gpu", **(lists | {"split": "92 9_9"}))
    assert missing.returncode == 2
    assert "splits/pascal/9_9/labeled.txt: no such list" in missing.stderr


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"split": "92 9_9"}, "splits/pascal/9_9/labeled.txt: no such list"),
        ({"split": "92 half"}, "splits/pascal/half/unlabeled.txt: no such list"),
        ({"split": "92", "method": "supervised unimatch"}, "there is no unimatch.py"),
    ],
)
def test_several_runs_are_checked_before_the_first(repo: Path, env: dict[str, str], words: str) -> None:
    (repo / "engine/launch.py").write_text(SWEPT)
    write_pairs(repo, "92", "half")
    (repo / "splits/pascal/half/unlabeled.txt").unlink()
    done = sh(repo / "scripts/train.sh", "1", "0", **env)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (repo / "calls.txt").exists()


def test_a_finished_run_that_is_started_again_ends_at_once(tmp_path: Path) -> None:
    """What a sweep relies on: nothing is trained again, and a run of other settings is refused."""
    args = make_tiny(tmp_path / "data").args(tmp_path / "run", "epochs=1", "supervised_length=4", unlabeled=False)
    supervised.main(args)
    before = (tmp_path / "run/latest.pth").stat().st_mtime_ns
    supervised.main(args)
    assert (tmp_path / "run/latest.pth").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"lr: 0\.0003, now 0\.1"):
        supervised.main([*args, "--set", "epochs=2", "--set", "lr=0.1"])


@pytest.mark.parametrize("name", ["demo", "gpu_table", "crash_test"])
def test_an_option_that_a_script_has_not_starts_nothing(name: str) -> None:
    done = subprocess.run(["sh", f"scripts/{name}.sh", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: {name}.sh: found '--help', expected")


BENCHMARK = """#!/bin/sh
[ "$1" = -m ] || exit 0  # setup.sh looks whether this Python has the requirements
echo "$@" >> "$CALLS"
case "$*" in *"--only fp32"*) exec sleep 20 ;; *" memory "*) exit 1 ;; esac
"""


def test_a_part_of_the_gpu_table_that_fails_or_takes_too_long_costs_no_other(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    for name in ("gpu_table.sh", "setup.sh"):
        text = (ROOT / "scripts" / name).read_text()
        (tmp_path / "scripts" / name).write_text(text.replace("part 80 ", "part 0.2 "))
    (tmp_path / "scripts/check_requirements.py").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").write_text(BENCHMARK)
    (tmp_path / "bin/python3").chmod(0o755)
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    done = sh(tmp_path / "scripts/gpu_table.sh", "my figures", "--rounds", "1", PATH=path, CALLS=str(tmp_path / "calls.txt"))
    assert done.returncode == 1, done.stderr
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert calls[0] == "-m scripts.benchmark step --only fp32 --rounds 1 --device cuda --json my figures/step_fp32.json"
    assert [call.split()[2] for call in calls] == ["step", "step", "memory", "eval", "step", "step", "data", "step", "loop"]
    assert "--only bf16, compile " in calls[-2], "what has to be compiled comes last"
    assert done.stdout.count("stopped after 0.2 s") == 1
    assert (tmp_path / "my figures").is_dir()


def test_each_seed_of_the_camvid_experiment_has_a_draw_of_its_own(repo: Path, tmp_path: Path) -> None:
    """And the runs that are there at its end are compared and shown."""
    (repo / "exp/camvid_lite0/supervised/seed3").mkdir(parents=True)
    (repo / "exp/camvid_lite0/unimatch_v2/seed3").mkdir(parents=True)
    for method in ("supervised", "unimatch_v2"):
        (repo / f"exp/camvid_lite0/{method}/seed3/test.json").touch()
    path = tools(tmp_path / "bin", python3='[ "$1" = -m ] && echo "$@" >> calls.txt; exit 0')
    done = sh(repo / "scripts/camvid_lite0.sh", "--set", "eval_every=2", path=path, seeds="3 4", method="supervised unimatch_v2")
    assert (done.returncode, done.stderr) == (0, "")
    calls = (repo / "calls.txt").read_text().splitlines()
    for call, (seed, method) in zip(calls, [(3, "supervised"), (3, "unimatch_v2"), (4, "supervised"), (4, "unimatch_v2")], strict=False):
        assert f" {method}.py --config=configs/camvid_lite0.yaml " in call
        assert f"--labeled-id-path splits/camvid/3_draw{seed}/labeled.txt " in call
        assert f"--save-path exp/camvid_lite0/{method}/seed{seed} " in call
        length = "--set epochs=16 --set eval_every=4" if method == "supervised" else "--set epochs=32 --set eval_every=8"
        assert call.endswith(f" --set val_id_path=splits/camvid/3_draw{seed}/select.txt {length} --set eval_every=2")
    assert calls[4].startswith("-m scripts.report compare --draws ")
    assert calls[5].endswith(" supervised=exp/camvid_lite0/supervised/seed3 unimatch_v2=exp/camvid_lite0/unimatch_v2/seed3")
    assert len(calls) == 6
