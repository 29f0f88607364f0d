"""`clustertools preflight`: are these nodes good, which are not, and the launch on those that are."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clustertools.cli.frame import Duration, Output, common, examples
from clustertools.errors import ConfigError

if TYPE_CHECKING:
    from clustertools.config import PreflightConfig
    from clustertools.preflight import Asked
    from clustertools.preflight_report import Report


def _file(help_text: str) -> dict[str, object]:
    return {"type": click.Path(path_type=Path, dir_okay=False), "metavar": "FILE", "help": help_text}


@click.command(
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
    epilog=examples(
        "clustertools preflight -w gpu[001-032]                   over ssh: which of these are good?",
        "clustertools preflight --job $SLURM_JOB_ID -- srun train.sh      in a job script",
        "clustertools preflight --idle --partition large          all idle nodes, from a login node",
        "clustertools preflight -w gpu[001-033] --need 32 -- torchrun ... {good_nodes_comma}",
        "clustertools preflight -w gpu[001-032] --spares gpu[033-034] --good-nodes good.txt",
        "clustertools preflight                                   this job's nodes, or this machine",
    ),
)
@click.option("-w", "--nodes", "nodes", metavar="NODES", help="These nodes, as a node set: gpu[001-032].")
@click.option("--job", metavar="ID", help="The nodes of this Slurm job.")
@click.option("--idle", is_flag=True, help="The idle nodes of Slurm.")
@click.option("--partition", metavar="NAME", help="With --idle: of this partition only.")
@click.option("--spares", metavar="NODES", help="Tested as well, and used for those that are bad.")
@click.option("--need", type=click.IntRange(1), metavar="N", help="Nodes that the launch needs [all].")
@click.option("--at-least", type=click.IntRange(1), metavar="N", help="So many will do [as --need].")
@click.option("--allow-unknown", is_flag=True, help="Use nodes that could not be tested, too.")
@click.option("--allow-slow-paths", is_flag=True, help="Let the job cross a slow path between nodes.")
@click.option("--budget", type=Duration(zero=False), help="Time for all of it [5m].")
@click.option("--stages", metavar="LIST", help="Which of passive,node,fabric [all].")
@click.option("--without", multiple=True, metavar="NAME", help="A check or probe that is not to count.")
@click.option("--transport", type=click.Choice(["auto", "ssh", "srun", "local"]), help="[auto]")
@click.option("-F", "--ssh-config", **_file("As ssh -F."))  # type: ignore[arg-type]
@click.option("--connect-timeout", type=Duration(zero=False), help="For one ssh connection [10s].")
@click.option("--python", metavar="PATH", help="On the nodes: the job's own, with PyTorch [python3].")
@click.option("--interface", metavar="NAME", help="Where the ranks meet [what all nodes share].")
@click.option("--sizes", metavar="LIST", help="Message sizes of the collectives: 1MiB,128MiB.")
@click.option("--data", multiple=True, metavar="DIR", help="Training data: read from all nodes at once.")
@click.option("--checkpoints", multiple=True, metavar="DIR", help="Written to from all nodes at once.")
@click.option("--env", "variables", multiple=True, metavar="NAME=VALUE", help="For the probes.")
@click.option("--seed", type=int, help="For the shuffling of groups [by chance].")
@click.option("--good-nodes", **_file("Write the nodes to launch on there, one a line."))  # type: ignore[arg-type]
@click.option("--exclude-out", **_file("Write the nodes not to use, in Slurm's form."))  # type: ignore[arg-type]
@click.option("--hostfile", **_file("Write a hostfile for mpirun, DeepSpeed and others."))  # type: ignore[arg-type]
@click.option("--slots", type=click.IntRange(1), default=8, show_default=True, help="In the hostfile.")
@click.option("--html", **_file("Write the report as one page."))  # type: ignore[arg-type]
@click.option("--junit", **_file("Write the report for a CI system."))  # type: ignore[arg-type]
@click.option("--config", "config_path", **_file("A config file, besides /etc/clustertools."))  # type: ignore[arg-type]
@click.argument("launch", nargs=-1, type=click.UNPROCESSED)
@common
def preflight(out: Output, launch: tuple[str, ...], **given: object) -> int:
    """Test nodes before a launch, and start LAUNCH on the good ones, if the verdict allows.

    First the passive checks of all nodes, then each node under load, then all of them together, within the
    budget. Exits 0 when every node is good, 1 when it may start with fewer or other nodes, 2 when too many
    are bad, 3 when too much is unknown; with LAUNCH, as that does.
    """
    raise NotImplementedError
