"""Which workers train together, read from TF_CONFIG or from SLURM."""

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Mapping

# Ports of SLURM steps lie below 32768, where Linux begins to hand out ports by itself.
FIRST_PORT = 12000
_PORT_BLOCKS = 1250
_BLOCK = 16  # ports of one step on one node; more tasks than that reach into the next block
_STEPS = 7  # of a job before they take the ports of the next job; no divisor of _PORT_BLOCKS


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes that train one model together.

    Args:
        workers: `"host:port"` of each, in the same order everywhere.
        index: of this process in `workers`; 0 is the chief, who writes the files.
        gpu_part: which part of the GPUs that this process sees is its own, in [0, gpu_parts).
        gpu_parts: number of processes that see these same GPUs; 1 where each sees only its own.

    Raises:
        ValueError: no workers, one named twice, or an index out of range.
    """

    workers: tuple[str, ...]
    index: int
    gpu_part: int = 0
    gpu_parts: int = 1

    def __post_init__(self):
        object.__setattr__(self, "workers", tuple(self.workers))
        if not self.workers or len(set(self.workers)) < len(self.workers):
            raise ValueError(
                f"`workers` must name each worker once. Received: {', '.join(self.workers)!r}"
            )
        for worker in self.workers:
            if not re.fullmatch(r".+:\d+", worker):
                raise ValueError(f"A worker must be 'host:port'. Received: {worker!r}")
        if not 0 <= self.index < len(self.workers):
            raise ValueError(
                f"`index` must be in [0, {len(self.workers)}), one of the workers. "
                f"Received: {self.index}"
            )
        if not 0 <= self.gpu_part < self.gpu_parts:
            raise ValueError(
                f"`gpu_part` must be in [0, {self.gpu_parts}). Received: {self.gpu_part}"
            )

    @property
    def on_this_machine(self) -> int:
        """Workers whose host is this one's, this one among them."""
        hosts = [worker.rpartition(":")[0] for worker in self.workers]
        return hosts.count(hosts[self.index])

    def tf_config(self) -> str:
        """The value of TF_CONFIG that `cluster_from_environment` reads back."""
        task = {"type": "worker", "index": self.index}
        return json.dumps({"cluster": {"worker": list(self.workers)}, "task": task})


def cluster_from_environment(environ: Mapping[str, str] = os.environ) -> Cluster | None:
    """The cluster that the environment describes, or None where this process trains alone.

    TF_CONFIG, where set, is `{"cluster": {"worker": ["host:port", …]}, "task": {"type":
    "worker", "index": 0}}`; the job `"chief"`, where there is one, comes first. Otherwise a
    SLURM step of several tasks is a cluster of that many workers: start it with `srun`. The
    tasks of a node share its GPUs evenly, unless SLURM gave each task its own
    (`--gpus-per-task`). A batch script outside `srun` trains alone.

    Args:
        environ: the environment variables.

    Raises:
        ValueError: TF_CONFIG or SLURM's variables are incomplete or contradict each other.
    """
    if environ.get("TF_CONFIG", "").strip():
        cluster = _from_tf_config(environ["TF_CONFIG"])
    elif _slurm_tasks(environ) > 1:
        cluster = _from_slurm(environ)
    else:
        return None
    return cluster if len(cluster.workers) > 1 else None


def _from_tf_config(text: str) -> Cluster:
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"TF_CONFIG must be JSON: {error}. Received: {text!r}") from error
    jobs = _entry(config, "cluster", dict, text)
    unknown = sorted(set(jobs) - {"chief", "worker"})
    if unknown:
        raise ValueError(
            "TF_CONFIG's 'cluster' must have the jobs 'worker' and, if need be, 'chief' alone. "
            f"Received: {', '.join(map(repr, unknown))}"
        )
    members = {job: _entry(jobs, job, list, text) for job in ("chief", "worker") if job in jobs}
    if not any(members.values()):
        raise ValueError(f"TF_CONFIG lacks 'worker' in its 'cluster'. Received: {text!r}")
    task = _entry(config, "task", dict, text)
    job, index = _entry(task, "type", str, text), _entry(task, "index", (int, str), text)
    if job not in members or not str(index).isdecimal() or int(index) >= len(members[job]):
        raise ValueError(
            f"TF_CONFIG's 'task' must be one of its 'cluster'. Received: {job!r} {index!r}"
        )
    first = 0 if job == "chief" else len(members.get("chief", ()))
    return Cluster(tuple(itertools.chain(*members.values())), first + int(index))


def _entry(data, key: str, kind: type | tuple[type, ...], text: str):
    if not isinstance(data, dict) or key not in data:
        raise ValueError(
            f"TF_CONFIG lacks {key!r}; it must be like "
            '{"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": 0}}. '
            f"Received: {text!r}"
        )
    if not isinstance(data[key], kind):
        raise ValueError(f"TF_CONFIG's {key!r} is of the wrong type. Received: {data[key]!r}")
    return data[key]


def _from_slurm(environ: Mapping[str, str]) -> Cluster:
    hosts = expand_hosts(_slurm(environ, "STEP_NODELIST"))
    counts = expand_counts(_slurm(environ, "STEP_TASKS_PER_NODE"))
    total, index = _slurm_tasks(environ), int(_slurm(environ, "PROCID"))
    if len(hosts) != len(counts) or sum(counts) != total:
        raise ValueError(
            f"SLURM names {len(hosts)} nodes, tasks on {len(counts)} nodes, {sum(counts)} of them, "
            f"and {total} tasks, which must agree: start the workers by `srun`, so that the "
            "variables are those of one step"
        )
    placement = environ.get("SLURM_DISTRIBUTION", "block")
    if max(counts) > 1 and not placement.startswith("block"):
        raise ValueError(
            "Tasks must fill one node after the other: start them by `srun --distribution=block`. "
            f"Received: SLURM_DISTRIBUTION={placement}"
        )
    base = step_port(environ)
    places = [(host, task) for host, n in zip(hosts, counts, strict=True) for task in range(n)]
    workers = tuple(f"{host}:{base + task}" for host, task in places)
    if not 0 <= index < total:
        raise ValueError(f"SLURM_PROCID must be in [0, {total}). Received: {index}")
    # The second is set for `--cpus-per-task` alone, too.
    if "SLURM_GPUS_PER_TASK" in environ or "gpu" in environ.get("SLURM_TRES_PER_TASK", ""):
        return Cluster(workers, index)
    host, task = places[index]
    return Cluster(workers, index, gpu_part=task, gpu_parts=counts[hosts.index(host)])


def expand_hosts(text: str) -> list[str]:
    """The hosts of SLURM's `"node[01-03,7],login"`, in its order, which is that of the tasks.

    Raises:
        ValueError: the text is no such list.
    """
    parts = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text)
    if not parts or ",".join(parts) != text:
        raise ValueError(f"A list of nodes must be like node[01-03,7],login. Received: {text!r}")
    return [host for part in parts for host in _expand_ranges(part)]


def _expand_ranges(part: str) -> list[str]:
    before, bracket, rest = part.partition("[")
    if not bracket:
        return [part]
    inside, _, after = rest.partition("]")
    numbers = []
    for piece in inside.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", piece)
        first, last = (match[1], match[2] or match[1]) if match else ("1", "0")
        if int(first) > int(last):
            raise ValueError(f"A range of nodes must be like [01-03,7]. Received: {part!r}")
        numbers += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return [before + number + tail for number in numbers for tail in _expand_ranges(after)]


def expand_counts(text: str) -> list[int]:
    """The numbers of SLURM's `"2(x3),1"`: 2, 2, 2, 1.

    Raises:
        ValueError: the text is no such list.
    """
    counts: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", piece)
        if not match:
            raise ValueError(f"Tasks per node must be like 2(x3),1. Received: {text!r}")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def step_port(environ: Mapping[str, str]) -> int:
    """The first of a step's ports, which all its tasks compute alike.

    Steps that run on one node at the same time have job and step numbers close to each other,
    and so different ports.
    """
    job, step = int(_slurm(environ, "JOB_ID")), int(environ.get("SLURM_STEP_ID", "0"))
    return FIRST_PORT + (_STEPS * job + step) % _PORT_BLOCKS * _BLOCK


def _slurm_tasks(environ: Mapping[str, str]) -> int:
    """Tasks of the step; 1 outside one: a batch script runs once, however many tasks it has."""
    if "SLURM_STEP_NODELIST" not in environ:
        return 1
    return int(environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS", "1")))


def _slurm(environ: Mapping[str, str], name: str) -> str:
    if f"SLURM_{name}" not in environ:
        raise ValueError(
            f"SLURM_{name} must be set where SLURM runs several tasks: start the workers by `srun`"
        )
    return environ[f"SLURM_{name}"]
