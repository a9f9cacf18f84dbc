"""What the peer scripts share: timing on the GPU, and rows as JSON lines."""

import json
import statistics
import sys

import torch


def seconds(body, warm_up=3, calls=20):
    """Median seconds of `body` on the GPU, by events; each call is waited for."""
    for _ in range(warm_up):
        body()
    torch.cuda.synchronize()
    times = []
    for _ in range(calls):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        body()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def graph_seconds(bodies, rounds=20):
    """Median seconds of one of `bodies`, all replayed in one CUDA graph: no launch cost, and each
    body may have its own operands, so that none is found in a cache."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for body in bodies:
            body()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for body in bodies:
            body()
    return seconds(graph.replay, calls=rounds) / len(bodies)


def row(name, time, **more):
    """Prints one measurement."""
    line = {"peer": f"torch {torch.__version__}", "row": name, "ms": round(time * 1e3, 5), **more}
    print(json.dumps(line), flush=True)


def require_gpu():
    """The device's name; leaves with a sentence where there is none."""
    if not torch.cuda.is_available():
        sys.exit("these scripts time PyTorch on an NVIDIA GPU, and there is none here")
    torch.manual_seed(0)
    return torch.cuda.get_device_name()
