"""What a cluster is like, from a site file: partition, sizes of nodes, time limits, lines to run
first.  `site.yaml` beside this file is a commented example."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Literal

import yaml
from pydantic import ValidationError, field_validator

from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.recipes.loading import explain
from speechgpt_lib.recipes.section import Count, Natural, Positive, Section

EXAMPLE = Path(__file__).with_name("site.yaml")
Kind = Literal["training", "array", "step", "notebook"]
_TIME = re.compile(r"(\d+-)?\d{1,3}(:\d{2}){1,2}|\d+")  # as sbatch takes it


class Times(Section):
    """The time limit of each kind of job, as sbatch writes it: MINUTES, H:M:S or D-H:M:S."""

    training: str = "1-00:00:00"  # a longer training goes on in the same job, requeued
    array: str = "4:00:00"
    step: str = "4:00:00"
    notebook: str = "2:00:00"

    @field_validator("*")
    @classmethod
    def slurm_reads_it(cls, value: str) -> str:
        """Refuses what sbatch would not take."""
        if not _TIME.fullmatch(value):
            raise ValueError(
                "expected minutes, hours:minutes:seconds or days-hours:minutes:seconds"
            )
        return value


class Array(Section):
    """How a step that is made in parts becomes an array of jobs."""

    tasks: Count = 16  # parts, of every N-th shard each
    at_once: Natural = 0  # at most so many of them at a time; 0: as many as there is room for
    retries: Natural = 2  # how often a part that failed is begun again


class Site(Section):
    """A cluster, as its users must know it; what is null is left to the cluster's defaults."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    cpus: Count = 2  # cores of a process
    memory_gb: Positive | None = None  # of a job, on each of its nodes
    gpus_per_node: Natural = 0
    processes_per_node: Count | None = None  # of a training; null: one for each GPU, or one
    times: Times = Times()
    array: Array = Array()
    signal_s: Count = 120  # so long before its limit a job is told to save
    setup: tuple[str, ...] = ()  # lines to run first: modules, an environment, a proxy
    container: str = ""  # what stands before the command: apptainer exec --nv image.sif
    scratch: str | None = None  # a folder on the node's own disk, for temporary files
    python: str = sys.executable  # as the nodes see it
    options: tuple[str, ...] = ()  # further options of sbatch: --constraint=a100

    @property
    def ranks(self) -> int:
        """Processes of a training on one node."""
        return self.processes_per_node or self.gpus_per_node or 1


def load_site(path: Path | None) -> Site:
    """The site of a file; without one, a cluster's defaults.

    Raises UserError for a file that is not there or not YAML, an unknown key or a wrong value.
    """
    if path is None:
        return Site()
    if not path.is_file():
        raise UserError(f"no site file {path}: copy {EXAMPLE} and change it")
    with reading(path, f"compare it with {EXAMPLE}", "is no site file"):
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(values, dict):
            raise ValueError(f"expected keys and values, found {type(values).__name__}")
    try:
        return Site.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error)} (see {EXAMPLE})") from None
