"""`clustertools metrics`: loss, grad norm, pace of a run, from any log of it."""

from __future__ import annotations

import click

from clustertools.cli.frame import examples
from clustertools.cli.metrics_read import read
from clustertools.cli.metrics_scan import scan
from clustertools.cli.metrics_tail import tail


@click.group(
    epilog=examples(
        "clustertools metrics scan train.log            what happened, one event a line",
        "clustertools metrics scan --plot train.log     the same with the curves",
        "clustertools metrics tail train.log            a live run",
        "clustertools metrics read train.log --csv      the series themselves",
    )
)
def metrics() -> None:
    """Loss, grad norm, step time: what the curves of a run did.

    Logs of any framework are recognised by themselves. docs/metrics.md says what each event means and what
    to do about it.
    """


for _command in (scan, tail, read):
    metrics.add_command(_command)
