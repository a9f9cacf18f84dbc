"""Times one training step of the published method on a 7B-shaped LLaMA block (C 4096, F 11008, 32
heads, T 2048, batch 1), rebuilt from its description: python3 published_step.py [w4a4] [w3a16]

As published: float16 autocast with a gradient scaler; dense C x C matrices with a block-diagonal
mask at v-o and q-k (w4a4) or dense ones behind the norms (w3a16); each inverse taken as often as the
published code takes it; shifts everywhere; fake quantization written in eager PyTorch.
"""

import sys

import torch
import torch.nn.functional as F
from common import require_gpu, row, seconds

C, FF, HEADS, T = 4096, 11008, 32, 2048
D = C // HEADS
DEVICE = "cuda"


def straight_through(x):
    return (x.round() - x).detach() + x


def quantize(x, mx, mn, top):
    scale = (mx - mn) / top
    zero = torch.clamp(-mn / scale, -1e4, 1e4).round()
    return (torch.clamp(straight_through(x / scale) + zero, 0, top) - zero) * scale


class Step:
    """Parameters, masks and frozen weights of a block, and one step on them."""

    def __init__(self, wbits, abits, matrix_norm, matrix_qk):
        self.wtop, self.abits = 2**wbits - 1, abits
        self.matrix_norm, self.matrix_qk = matrix_norm, matrix_qk
        shapes = {
            "q": (C, C), "k": (C, C), "v": (C, C), "o": (C, C),
            "gate": (FF, C), "up": (FF, C), "down": (C, FF),
        }  # fmt: skip
        draw = lambda *shape: torch.randn(*shape, device=DEVICE)
        self.weights = {name: draw(*shape) * 0.02 for name, shape in shapes.items()}
        self.gain = {"qkv": torch.ones(C, device=DEVICE), "fc1": torch.ones(C, device=DEVICE)}
        learned = lambda x: x.requires_grad_()
        eye = torch.eye(C, device=DEVICE)
        start = lambda is_matrix: learned(eye.clone() if is_matrix else torch.ones(C, device=DEVICE))
        self.smooth = {
            "qkv": start(matrix_norm), "fc1": start(matrix_norm),
            "out": start(True), "qkt": start(matrix_qk),
        }  # fmt: skip
        self.shift = {p: learned(torch.zeros(C, device=DEVICE)) for p in ("qkv", "fc1", "out")}
        self.clip = {
            name: learned(torch.full((2, shape[0], 1), 4.0, device=DEVICE))
            for name, shape in shapes.items()
        }
        self.head_mask = torch.block_diag(*[torch.full((D, D), 0.1, device=DEVICE)] * HEADS)
        self.head_mask.fill_diagonal_(1)
        self.full_mask = torch.full((C, C), 0.01, device=DEVICE).fill_diagonal_(1)
        angles = torch.outer(torch.arange(T), 1e4 ** (-torch.arange(0, D, 2) / D)).to(DEVICE)
        self.cos, self.sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))
        self.x, self.target, self.aug = draw(1, T, C), draw(1, T, C), draw(1, T, C)
        self.causal = torch.full((T, T), torch.finfo(torch.float16).min, device=DEVICE).triu(1)
        groups = [
            {"params": [*self.smooth.values(), *self.shift.values()], "lr": 5e-3},
            {"params": list(self.clip.values()), "lr": 1e-2},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0)
        self.scaler = torch.amp.GradScaler("cuda")

    def truncate(self):
        with torch.no_grad():
            for s in self.smooth.values():
                s.copy_(torch.where(s.abs() < 1e-2, s.sign() * 1e-2, s))

    def transformed(self):
        w = dict(self.weights)
        b = {}
        norms = {}
        for place, names in (("qkv", "qkv"), ("fc1", ("gate", "up"))):
            s, shift = self.smooth[place], self.shift[place]
            for name in names:
                b[name] = w[name] @ shift
            if self.matrix_norm:
                a = s * self.full_mask
                norms[place] = (self.gain[place], -shift, torch.linalg.inv(a))
                for name in names:
                    w[name] = w[name] @ a.t()
            else:
                norms[place] = (self.gain[place] / s, -shift / s, None)
                for name in names:
                    w[name] = w[name] * s
        a, shift = self.smooth["out"] * self.head_mask, self.shift["out"]
        b["o"] = w["o"] @ shift
        b["v"] = (b["v"] - shift) @ torch.linalg.inv(a)
        w["v"] = torch.linalg.inv(a).t() @ w["v"]
        w["o"] = w["o"] @ a.t()
        if self.matrix_qk:
            a = self.smooth["qkt"] * self.head_mask
            w["q"] = torch.linalg.inv(a).t() @ w["q"]
            b["q"] = b["q"] @ torch.linalg.inv(a)
            w["k"], b["k"] = a @ w["k"], b["k"] @ a.t()
        else:
            s = self.smooth["qkt"]
            w["q"], b["q"] = w["q"] / s[:, None], b["q"] / s
            w["k"], b["k"] = w["k"] * s[:, None], b["k"] * s
        for name in w:
            up, low = torch.sigmoid(self.clip[name])
            mx, mn = w[name].amax(1, keepdim=True) * up, w[name].amin(1, keepdim=True) * low
            w[name] = quantize(w[name], mx, mn, self.wtop)
        return w, b, norms

    def tokens(self, x):
        if self.abits >= 16:
            return x
        return quantize(x, x.amax(-1, keepdim=True), x.amin(-1, keepdim=True), 2**self.abits - 1)

    def norm(self, x, gain, bias, inverse):
        y = x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5) * gain + bias
        return y if inverse is None else y @ inverse

    def rotate(self, x):
        half = torch.cat([-x[..., D // 2 :], x[..., : D // 2]], -1)
        return x * self.cos + half * self.sin

    def block(self, x, w, b, norms):
        linear = lambda x, name: F.linear(self.tokens(x), w[name], b.get(name))
        heads = lambda y: y.view(1, T, HEADS, D).transpose(1, 2)
        h = self.norm(x, *norms["qkv"])
        q, k, v = (heads(linear(h, name)) for name in "qkv")
        q, k, v = self.tokens(self.rotate(q)), self.tokens(self.rotate(k)), self.tokens(v)
        logits = q @ k.transpose(2, 3) / D**0.5 + self.causal
        y = torch.softmax(logits, -1, dtype=torch.float32).to(v.dtype) @ v
        x = x + linear(y.transpose(1, 2).reshape(1, T, C), "o")
        h = self.norm(x, *norms["fc1"])
        return x + linear(F.silu(linear(h, "gate")) * linear(h, "up"), "down")

    def run(self):
        with torch.autocast("cuda", dtype=torch.float16):
            self.truncate()
            y = self.block(self.x, *self.transformed())
            loss = F.mse_loss(y, self.target) + (
                F.mse_loss(y, self.aug) if self.abits < 16 else 0
            )
        loss.item()  # the published loop looks at every loss
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.scaler.step(self.optimizer)
        self.scaler.update()


SETTINGS = {"w4a4": (4, 4, False, True), "w3a16": (3, 16, True, False)}


def main():
    name = require_gpu()
    print(f"# {name}, torch {torch.__version__}", flush=True)
    for setting in sys.argv[1:] or SETTINGS:
        torch.cuda.reset_peak_memory_stats()
        step = Step(*SETTINGS[setting])
        time = seconds(step.run, calls=7)
        peak = torch.cuda.max_memory_allocated() / 1e9
        row(f"published step {setting}", time, peak_gb=round(peak, 2))
        del step
        torch.cuda.empty_cache()


main()
