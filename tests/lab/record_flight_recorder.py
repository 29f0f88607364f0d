"""Makes tests/sources/flight_recorder: what real ranks of PyTorch dump while their job hangs.

    TORCH_FR_BUFFER_SIZE=64 torchrun --standalone --nproc-per-node 4 record_flight_recorder.py stall FOLDER

Four ranks over gloo; 0 and 1 have a group of their own. `stall`: rank 2 never comes to the sixth all_reduce.
`mismatch`: there it calls broadcast instead. A thread dumps, as the main one hangs in C++. gloo leaves
`pg_config` empty and every state "scheduled"; with NCCL both are filled in. In what is checked in, paths of
the machine were replaced by others of the same length.
"""

from __future__ import annotations

import datetime
import os
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _dump_fr_trace, _dump_fr_trace_json


def dump(folder: Path, rank: int) -> None:
    time.sleep(6)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank{rank}").write_bytes(_dump_fr_trace(True, True, False))
    (folder / f"rank{rank}.json").write_bytes(_dump_fr_trace_json(True, False))
    time.sleep(3)  # the others' sockets stay open meanwhile
    os._exit(0)


def main(how: str, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    rank = dist.get_rank()
    threading.Thread(target=dump, args=(folder, rank), daemon=True).start()
    x, pair = torch.ones(1000), dist.new_group([0, 1], group_desc="tp")
    for i in range(8):
        if rank == 2 and i == 5:
            if how == "stall":
                time.sleep(600)
            dist.broadcast(x, 0)
        dist.all_reduce(x)
        if rank in (0, 1):
            dist.all_gather([torch.empty(10), torch.empty(10)], torch.ones(10), group=pair)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
