"""Times PyTorch doing what our kernels do, on this GPU: python3 time_kernels.py [filter...]

Rows: copy and matrix-product rates (the limits), batched and large inverses, fused AdamW, the
fake-quantized linear (eager and compiled, forward and backward), and its int4 product.
"""

import sys

import torch
import torch.nn.functional as F
from common import graph_seconds, require_gpu, row, seconds

DEVICE = "cuda"


def limits():
    x = torch.empty(1 << 28, device=DEVICE)
    y = torch.empty_like(x)
    time = seconds(lambda: y.copy_(x))
    row("copy 1 GiB", time, gbs=round(2 * x.nbytes / time / 1e9))
    for n in (4096, 8192):
        a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
        time = seconds(lambda: a @ b)
        row(f"bf16 product {n}", time, tflops=round(2 * n**3 / time / 1e12))
        i8 = [torch.randint(-8, 8, (n, n), device=DEVICE, dtype=torch.int8) for _ in range(2)]
        time = seconds(lambda: torch._int_mm(i8[0], i8[1].t()))
        row(f"int8 product {n}", time, tops=round(2 * n**3 / time / 1e12))


def inverses():
    for batch, n in ((32, 128), (1024, 128), (1024, 64), (1, 2048), (1, 4096)):
        a = torch.eye(n, device=DEVICE) + torch.randn(batch, n, n, device=DEVICE) * (0.1 / n)
        row(f"linalg.inv {batch} x {n}^2", seconds(lambda: torch.linalg.inv(a), calls=10))


def adam():
    parameters = [torch.randn(4096, 4096, device=DEVICE, requires_grad=True) for _ in range(4)]
    for p in parameters:
        p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    time = seconds(optimizer.step)
    moved = 28 * sum(p.numel() for p in parameters)
    row("fused AdamW 4 x 4096^2", time, gbs=round(moved / time / 1e9))


def fake_quant_weight(w, clip):
    mx = torch.clamp(w.amax(1, keepdim=True), min=0) * torch.sigmoid(clip[0])
    mn = torch.clamp(w.amin(1, keepdim=True), max=0) * torch.sigmoid(clip[1])
    return fake_quant(w, mx, mn)


def fake_quant_tokens(x):
    return fake_quant(x, x.amax(-1, keepdim=True), x.amin(-1, keepdim=True))


def straight_through(x):
    return (x.round() - x).detach() + x


def fake_quant(x, mx, mn, top=15):
    scale = torch.clamp((mx - mn) / top, min=1e-5)
    zero = straight_through(-mn / scale)
    return (torch.clamp(straight_through(x / scale) + zero, 0, top) - zero) * scale


def linears():
    m, n, k = 2048, 4096, 4096
    x = torch.randn(m, k, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    w = torch.randn(n, k, device=DEVICE, dtype=torch.bfloat16) * 0.02
    g = torch.randn(m, n, device=DEVICE, dtype=torch.bfloat16)
    clip = torch.full((2, n, 1), 4.0, device=DEVICE, requires_grad=True)

    def bare():
        x @ w.t()
        g @ w
        g.t() @ x

    def bare_forward():
        x @ w.t()

    with torch.no_grad():
        row("bare bf16 products, forward 2048x4096x4096", seconds(bare_forward))
        row("bare bf16 products, forward + backward 2048x4096x4096", seconds(bare))

    def linear(x, w, clip):
        return F.linear(fake_quant_tokens(x), fake_quant_weight(w, clip).to(x.dtype))

    for name, layer in (("eager", linear), ("compiled", torch.compile(linear))):

        def step(layer=layer):
            y = layer(x, w, clip)
            y.backward(g)
            x.grad = clip.grad = None

        row(f"fake-quant linear {name}, forward + backward 2048x4096x4096", seconds(step))


def int4():
    n = k = 8192
    group = 128
    sets = 6  # 6 x 34.6 MB of weights: beyond any L2
    scales = [torch.rand(k // group, n, 2, device=DEVICE, dtype=torch.bfloat16) for _ in range(sets)]
    packed = []
    for _ in range(sets):
        codes = torch.randint(0, 256, (n, k // 2), device=DEVICE, dtype=torch.uint8)
        packed.append(torch._convert_weight_to_int4pack(codes, 8))
    dense = [torch.randn(n, k, device=DEVICE, dtype=torch.bfloat16) for _ in range(sets)]
    for m in (1, 4, 8, 16, 32, 64, 128, 256, 2048):
        x = torch.randn(m, k, device=DEVICE, dtype=torch.bfloat16)
        time = graph_seconds([lambda w=w: x @ w.t() for w in dense])
        row(f"bf16 product 8192^2, M {m}", time)
        if m <= 64:
            bodies = [
                lambda w=w, s=s: torch._weight_int4pack_mm(x, w, group, s)
                for w, s in zip(packed, scales)
            ]
            time = graph_seconds(bodies)
            moved = n * k / 2 + n * k / group * 4
            row(f"int4 product 8192^2 g128, M {m}", time, gbs=round(moved / time / 1e9))


def main():
    name = require_gpu()
    print(f"# {name}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    wanted = sys.argv[1:]
    for part in (limits, inverses, adam, linears, int4):
        if wanted and not any(word in part.__name__ for word in wanted):
            continue
        part()
        torch.cuda.empty_cache()


main()
