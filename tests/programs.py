"""Programs of four gloo processes: what each begins and ends with, and what came of them."""

import os
import subprocess
import sys
import textwrap

PROCESSES = 4
START = """
    import datetime
    import os
    import sys

    import torch
    import torch.distributed as dist
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    import maskloss as ml

    rank, processes, rendezvous = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    store, timeout = dist.FileStore(rendezvous, processes), datetime.timedelta(seconds=int(sys.argv[4]))
    dist.init_process_group("gloo", store=store, timeout=timeout, world_size=processes, rank=rank)
    generator = torch.Generator().manual_seed(0)


    class Collectives(TorchDispatchMode):
        \"""The numbers that each collective takes, or those that it gives where these are more.\"""

        def __init__(self):
            super().__init__()
            self.sizes = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            if function.namespace == "c10d":
                tensors = ([x for x in tree_leaves(arg) if isinstance(x, torch.Tensor)] for arg in (*args, out))
                self.sizes.append(max(sum(x.numel() for x in each) for each in tensors))
            return out


    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)


"""

END = """
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # as in the examples of several processes
"""


def on_processes(folder, *program, timeout=60):
    """Their exit codes, and what each wrote to stderr; `timeout`: seconds of a collective."""
    text = "".join(map(textwrap.dedent, (START, *program, END)))
    command = [sys.executable, "-c", text]
    # Inductor would start processes of its own in each of the four.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    running = [
        subprocess.Popen(
            [*command, str(rank), str(PROCESSES), str(folder / "rendezvous"), str(timeout)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(PROCESSES)
    ]
    errors = [process.communicate(timeout=300)[1] for process in running]
    return [process.returncode for process in running], errors
