"""The job files of docs/ are right as far as it can be seen without a cluster."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def words_after(text: str, command: str) -> list[str]:
    """Return the words of a shell command that follow a name."""
    words = shlex.split(text.replace("\\\n", " "))
    return words[words.index(command) + 1 :]


def flags(words: list[str]) -> dict[str, str]:
    """Return the values of the words' flags; of one that is repeated, the last."""
    return {word: value for word, value in zip(words, [*words[1:], ""], strict=True) if word.startswith("-")}


def test_the_slurm_script_is_bash_and_starts_a_task_for_each_gpu() -> None:
    path = DOCS / "slurm.sbatch"
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)$", path.read_text(), re.MULTILINE))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert asked.keys() >= {"nodes", "time", "requeue"}
    assert asked["signal"] == "USR1@120"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    given = flags(words_after("\n".join(lines), "orpo-lightning"))
    assert given["--resume"] == "auto"
    assert given["--trainer.num_nodes"] == "$SLURM_JOB_NUM_NODES"
    assert given["--trainer.devices"] == "${SLURM_NTASKS_PER_NODE%%(*}"


def test_the_kubernetes_job_starts_as_many_processes_as_gpus_on_as_many_pods_as_it_says() -> None:
    job: Any = yaml.safe_load((DOCS / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert replicas["Master"]["replicas"] == 1
    for spec in replicas.values():
        assert spec["restartPolicy"] == "OnFailure"
        pod = spec["template"]["spec"]
        (container,) = pod["containers"]
        assert container["name"] == "pytorch"
        given = flags(words_after(container["args"][0], "torchrun"))
        assert int(given["--nnodes"]) == sum(one["replicas"] for one in replicas.values())
        gpus = container["resources"]["limits"]["nvidia.com/gpu"]
        assert int(given["--nproc-per-node"]) == gpus == int(job["spec"]["nprocPerNode"])
        assert given["-m"] == "orpo_lightning"
        assert given["--resume"] == "auto"
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
        assert given["--run_dir"].startswith(mounted["runs"] + "/")


def recipe() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "mistral.yaml").read_text())
    return config


def pairs_a_step(given: dict[str, str], devices: int) -> int:
    """Return the pairs of a step of the recipe with these flags."""
    batch = given.get("--data.batch_size", recipe()["data"]["batch_size"])
    accumulated = given.get(
        "--trainer.accumulate_grad_batches", recipe()["trainer"]["accumulate_grad_batches"]
    )
    return int(batch) * int(accumulated) * devices


def test_a_job_file_says_how_many_pairs_its_steps_have() -> None:
    slurm, kubernetes = ((DOCS / name).read_text() for name in ("slurm.sbatch", "kubernetes.yaml"))
    nodes, gpus = re.findall(r"^#SBATCH --(?:nodes|gpus-per-node)=(\d+)$", slurm, re.MULTILINE)
    master = yaml.safe_load(kubernetes)["spec"]["pytorchReplicaSpecs"]["Master"]
    (container,) = master["template"]["spec"]["containers"]
    started = flags(words_after(container["args"][0], "torchrun"))
    lines = "\n".join(line for line in slurm.splitlines() if not line.startswith("#"))
    for text, given, devices in (
        (slurm, flags(words_after(lines, "orpo-lightning")), int(nodes) * int(gpus)),
        (kubernetes, started, int(started["--nnodes"]) * int(started["--nproc-per-node"])),
    ):
        (said,) = re.findall(r"^# (\d+) GPUs x .* = (\d+) pairs a step", text, re.MULTILINE)
        assert tuple(map(int, said)) == (devices, pairs_a_step(given, devices))


def test_the_commands_for_eight_gpus_keep_the_recipes_pairs_a_step_and_its_validations() -> None:
    block = (DOCS / "scaling.md").read_text().partition("```\n")[2].partition("```")[0]
    lines = [line for line in block.replace("\\\n", " ").splitlines() if "configs/mistral.yaml" in line]
    assert len(lines) == 2
    for line in lines:
        given = flags(shlex.split(line, comments=True))
        assert pairs_a_step(given, 8) == pairs_a_step({}, 1)
        # Counted in micro-batches.
        every = int(given["--trainer.val_check_interval"]) // int(given["--trainer.accumulate_grad_batches"])
        trainer = recipe()["trainer"]
        assert every == trainer["val_check_interval"] // trainer["accumulate_grad_batches"]


def test_the_configs_that_the_job_files_name_are_there() -> None:
    for name in ("slurm.sbatch", "kubernetes.yaml"):
        named = re.findall(r"configs/\w+\.yaml", (DOCS / name).read_text())
        assert named
        assert [config for config in named if not (ROOT / config).is_file()] == []
