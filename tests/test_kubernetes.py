"""launch/kubernetes: valid, whole sets that restart, and a command that trains, stops and goes on.

Kubeflow's own models of its API, of JobSet's and of Kubernetes' say what is valid.
"""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import kubeflow_trainer_api.models as models
import launching
import pytest
import yaml
from pydantic import ValidationError

FILES = Path(__file__).parents[1] / "launch/kubernetes"
KINDS = {
    "jobset.x-k8s.io/v1alpha2 JobSet": models.JobsetV1alpha2JobSet,
    "trainer.kubeflow.org/v1alpha1 TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
    "trainer.kubeflow.org/v1alpha1 TrainJob": models.TrainerV1alpha1TrainJob,
}
VOLUME, JOBSET, RUNTIME, TRAINJOB = (
    document
    for name in ("volume", "jobset", "trainjob")
    for document in yaml.safe_load_all((FILES / f"{name}.yaml").read_text())
)
DOCKERFILE = (FILES / "Dockerfile").read_text()


def check_valid(document: dict) -> None:
    """Types as the models have them, and no key that they do not know."""
    model = KINDS[f"{document['apiVersion']} {document['kind']}"]
    assert model.from_dict(document).to_dict() == document


def pods(document: dict) -> tuple[dict, dict, dict]:
    """Of a JobSet or TrainingRuntime: the set's spec, its only job's, and the pods'."""
    jobset = document["spec"] if document is JOBSET else document["spec"]["template"]["spec"]
    [job] = jobset["replicatedJobs"]
    return jobset, job["template"]["spec"], job["template"]["spec"]["template"]["spec"]


def trainer(document: dict) -> dict:
    """What has a command: a JobSet's container, or a TrainJob's trainer."""
    return pods(document)[2]["containers"][0] if document is JOBSET else document["spec"]["trainer"]


def variables(document: dict) -> dict[str, str]:
    return {each["name"]: each["value"] for each in trainer(document)["env"] if "value" in each}


@pytest.mark.parametrize("document", [JOBSET, RUNTIME, TRAINJOB], ids=lambda each: each["kind"])
def test_manifests_are_valid(document):
    check_valid(document)


def test_what_is_not_valid_is_seen():
    misspelt = json.loads(json.dumps(JOBSET).replace("backoffLimit", "backOffLimit"))
    with pytest.raises(AssertionError):
        check_valid(misspelt)
    with pytest.raises(ValidationError):
        check_valid(json.loads(json.dumps(JOBSET).replace(": 120", ': "120"')))


@pytest.mark.parametrize("document", [JOBSET, RUNTIME], ids=lambda each: each["kind"])
def test_pods_restart_together_and_have_time_to_save(document):
    jobset, job, pod = pods(document)
    assert jobset["failurePolicy"]["maxRestarts"] > 0
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    [rule] = job["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onPodConditions"][0]["type"]) == ("FailJob", "DisruptionTarget")
    [rule] = jobset["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert pod["terminationGracePeriodSeconds"] >= 60
    assert pod["securityContext"]["runAsNonRoot"]


@pytest.mark.parametrize("document", [JOBSET, RUNTIME], ids=lambda each: each["kind"])
def test_runs_are_on_the_shared_volume(document):
    _, _, pod = pods(document)
    assert VOLUME["spec"]["accessModes"] == ["ReadWriteMany"]
    claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"][:1]}
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert claims == {"runs": VOLUME["metadata"]["name"]}
    assert mounts["runs"] == "/runs"


def test_numbers_of_machines_and_processes_agree():
    _, job, _ = pods(JOBSET)
    given = variables(JOBSET)
    assert job["parallelism"] == job["completions"] == int(given["PET_NNODES"])
    world = job["parallelism"] * int(given["PET_NPROC_PER_NODE"])
    assert int(given["SINLSTM_DIST_WORLD_SIZE"]) == world
    job = TRAINJOB["spec"]["trainer"]
    world = job["numNodes"] * job["numProcPerNode"]
    assert int(variables(TRAINJOB)["SINLSTM_DIST_WORLD_SIZE"]) == world
    assert not any(name.startswith("PET_") for name in variables(TRAINJOB))  # Kubeflow's own


def test_names_lead_to_each_other():
    name, job = JOBSET["metadata"]["name"], JOBSET["spec"]["replicatedJobs"][0]["name"]
    assert variables(JOBSET)["PET_MASTER_ADDR"] == f"{name}-{job}-0-0.{name}"
    assert TRAINJOB["spec"]["runtimeRef"]["name"] == RUNTIME["metadata"]["name"]
    image = pods(JOBSET)[2]["containers"][0]["image"]
    assert pods(RUNTIME)[2]["containers"][0]["image"] == image
    assert f"-t {image} ." in DOCKERFILE


def test_the_image_has_a_normal_user_and_no_shell_before_torchrun():
    assert re.findall(r"^USER (.*)$", DOCKERFILE, flags=re.MULTILINE)[-1] == "1000:1000"
    [command] = re.findall(r"^CMD (.*)$", DOCKERFILE, flags=re.MULTILINE)
    assert json.loads(command)[0] == "torchrun"
    assert "ENTRYPOINT" not in DOCKERFILE
    for line in re.findall(r"^COPY (?!--)(.*)$", DOCKERFILE, flags=re.MULTILINE):
        for source in line.split()[:-1]:
            assert (FILES.parents[1] / source).exists()


@pytest.fixture
def start_pods(tmp_path):
    """Starts the JobSet's two pods here, without their paths and addresses."""
    started = []

    def start(settings: dict) -> list[subprocess.Popen[bytes]]:
        there = {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(launching.free_port())}
        arguments = [each.replace("/runs/", f"{tmp_path}/") for each in trainer(JOBSET)["args"]]
        command = [*trainer(JOBSET)["command"], *arguments, *launching.flags(settings)]
        for rank in range(2):
            given = variables(JOBSET) | there | {"PET_NODE_RANK": str(rank)}
            environment = launching.environment(**given)
            started.append(subprocess.Popen(command, cwd=tmp_path, env=environment))
        return started[-2:]

    yield start
    for pod in started:
        if pod.poll() is None:
            for pid in (*launching.children(pod.pid), pod.pid):
                os.kill(pid, signal.SIGKILL)
            pod.wait()


def test_the_command_trains_saves_when_told_to_end_and_goes_on(start_pods, tmp_path):
    settings = {**launching.SMALL, "train.epochs": 1_000_000, "checkpoint.every_epochs": 1_000_000}
    pods = start_pods(settings)
    metrics = tmp_path / "first/metrics.jsonl"
    launching.wait_for(lambda: metrics.exists() and metrics.read_text())
    pods[1].terminate()
    assert all(pod.wait() for pod in pods)
    stopped = launching.summary(tmp_path / "first")
    assert (stopped["outcome"], stopped["world_size"]) == ("stopped", 2)

    pods = start_pods({**settings, "train.epochs": stopped["epochs"] + 2})
    assert [pod.wait() for pod in pods] == [0, 0]
    assert launching.summary(tmp_path / "first")["outcome"] == "completed"


def test_both_kinds_have_the_same_command():
    for key in ("command", "args"):
        assert trainer(TRAINJOB)[key] == trainer(JOBSET)[key]
