"""What the sizes of the code are chosen by on one GPU: `python -m benchmarks.on_cuda_sizes`, from the project's root.

Milliseconds of the device, and GiB at the allocator's peak, of: the kernels' classes and warps in a program; the bytes
of a block of the engine; the rows of a chunk of a linear loss. With --trial on the CPU, which shows that it runs.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import torch

import maskloss as ml
from maskloss._bindings import launches
from maskloss._engine import walk

from .gpu import device_name
from .harness import ROOT, versions

SHAPES = ((8192, 32000), (4096, 128256), (32768, 1024))
BLOCKS, WARPS = (1024, 2048, 4096, 8192), (2, 4, 8, 16)
BYTES = tuple(1 << power for power in (24, 26, 28, 30))
PROJECTIONS = ((8192, 32000, 4096), (8192, 128256, 4096))
CHUNKS = (512, 1024, 2048, 4096, 8192)


def logits_of(rows, classes, dtype, device):
    torch.manual_seed(0)
    x = torch.randn(rows, classes, device=device, dtype=dtype)
    return x.requires_grad_(), torch.randint(classes, (rows,), device=device)


def with_gradient(loss, *leaves):
    return lambda: torch.autograd.grad(loss(), leaves)


def forward_alone(loss):
    def call():
        with torch.no_grad():
            return loss()

    return call


def measured(call, device):
    """Median milliseconds of five batches, and GiB at the peak beyond what was there."""
    call()
    if device == "cpu":
        start = time.perf_counter()
        call()
        return {"ms": round(1e3 * (time.perf_counter() - start), 3)}
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    peak = torch.cuda.max_memory_allocated() - before
    return {"ms": milliseconds(call, 5), "GiB": round(peak / 2**30, 3)}


def milliseconds(call, repeats):
    batches = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        batches.append(start.elapsed_time(end) / repeats)
    return round(median(batches), 4)


def replayed(call, device):
    """The same of what a CUDA graph of ten calls replays: the device's time, without the host's."""
    if device == "cpu":
        return measured(call, device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(10):
            call()
    return {"ms": round(milliseconds(graph.replay, 2) / 10, 4)}


def of_kernels(device, shapes, blocks, warps):
    for rows, classes in shapes:
        for dtype in (torch.bfloat16, torch.float32):
            x, labels = logits_of(rows, classes, dtype, device)

            def loss(x=x, labels=labels):
                return ml.cross_entropy(x, labels, implementation="triton")

            for block in [b for b in blocks if b <= triton_size(classes)]:
                for count in [w for w in warps if 64 * w <= block <= 1024 * w]:
                    launches.sizes_of = lambda _, __=None, b=block, w=count: {"BLOCK": b, "ROWS": 1, "num_warps": w}
                    case = {
                        "what": "kernels",
                        "shape": [rows, classes],
                        "dtype": str(dtype)[6:],
                        "size": [block, count],
                    }
                    yield case | {"direction": "forward"} | replayed(forward_alone(loss), device)
                    yield case | {"direction": "forward + backward"} | replayed(with_gradient(loss, x), device)


def triton_size(classes):
    return 1 << (classes - 1).bit_length()


def of_blocks(device, shapes, sizes):
    for rows, classes in shapes:
        x, labels = logits_of(rows, classes, torch.bfloat16, device)
        mask = torch.rand(rows, device=device) < 0.15
        for kept in (None, mask):

            def loss(x=x, labels=labels, kept=kept):
                return ml.cross_entropy(x, labels, mask=kept, implementation="analytic")

            for size in sizes:
                walk.ACCELERATOR_BLOCK_BYTES = size
                case = {"what": "blocks", "shape": [rows, classes], "masked": kept is not None, "size": size}
                yield case | measured(with_gradient(loss, x), device)


def of_chunks(device, shapes, sizes):
    for rows, classes, features in shapes:
        hidden, labels = logits_of(rows, features, torch.bfloat16, device)
        kernel = (torch.randn(classes, features, device=device) / features**0.5).bfloat16().requires_grad_()
        labels = labels % classes
        for implementation in ("analytic", "triton"):
            for size in [s for s in sizes if s <= rows]:

                def loss(i=implementation, s=size, h=hidden, k=kernel, y=labels):
                    return ml.linear_cross_entropy(h, k, y, chunk_size=s, implementation=i)

                case = {"what": "chunks", "shape": [rows, classes, features], "way": implementation, "size": size}
                yield case | measured(with_gradient(loss, hidden, kernel), device)


def rows_of(device, trial, only):
    chosen = launches.sizes_of, walk.ACCELERATOR_BLOCK_BYTES
    if trial:
        yield from of_kernels(device, [(4, 300)], (128, 256), (1,))
        launches.sizes_of = chosen[0]
        yield from of_blocks(device, [(4, 40)], (256, 512))
        yield from of_chunks(device, [(8, 40, 8)], (2, 4))
        return
    parts = {
        "kernels": lambda: of_kernels(device, SHAPES, BLOCKS, WARPS),
        "blocks": lambda: of_blocks(device, SHAPES[::2], BYTES),
        "chunks": lambda: of_chunks(device, PROJECTIONS, CHUNKS),
    }
    for name in [only] if only else parts:
        yield from parts[name]()
        launches.sizes_of, walk.ACCELERATOR_BLOCK_BYTES = chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trial", action="store_true", help="on the CPU, tiny shapes")
    parser.add_argument("--only", choices=("kernels", "blocks", "chunks"))
    parser.add_argument("--output", type=Path, help="where gpu_sizes.json goes")
    args = parser.parse_args()
    device = "cpu" if args.trial else "cuda"
    folder = args.output or ROOT / ("build/bench" if args.trial else "docs/_generated")
    folder.mkdir(parents=True, exist_ok=True)
    about = {"device": device_name(device), "versions": versions("gpu", ("torch",)), "date": time.strftime("%Y-%m-%d")}
    rows = []
    for row in rows_of(device, args.trial, args.only):
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    (folder / "gpu_sizes.json").write_text(f'{{\n"about": {json.dumps(about)},\n"rows": [\n{lines}\n]\n}}\n')


if __name__ == "__main__":
    main()
