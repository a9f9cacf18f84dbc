"""Exports against the readers that they are for.

    node dist-bench/bench/exports.js DIR        # makes runs, exports, and what we compute from them
    python3 bench/peers/check_exports.py DIR    # this

layouts     the published unpacking rules of gptq, gptq_v2, awq and compressed-tensors, written from
            docs/formats.md, give the codes, scales, zero points and weights of the run, bit for bit
model       transformers loads the folder in float32; its logits are ours (needs PyTorch 2.4,
            transformers, and compressed-tensors for the folders of that name). transformers 5
            leaves transform_config out: compressed-tensors' own code applies it here
tokenizer   transformers' tokenizer gives our tokens
            4-bit floats: float4.py

Prints a line for each check; exits with 1 where one is missed.
"""

import argparse
import json
import pathlib
import sys
import traceback

import float4
import numpy as np
from safetensors.numpy import load_file

HF_LIMIT = 1e-3
PACKED_LIMIT = 1e-2
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Report:
    """Lines as they come, and how many checks were missed."""

    def __init__(self):
        self.missed = 0

    def line(self, case, what, ok, found):
        self.missed += not ok
        print(f"{case:14} {what:34} {'ok' if ok else 'MISSED':6} {found}", flush=True)


# -- layouts ------------------------------------------------------------------------------------


def stream(words, bits, count):
    """The first values of the bit stream in each row of 32-bit words: bits [k b, (k + 1) b)."""
    single = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    single = single[:, : count * bits].reshape(words.shape[0], count, bits)
    return (single.astype(np.int64) << np.arange(bits)).sum(axis=2)


def rows_of(words):
    """Rows of words, contiguous."""
    return np.ascontiguousarray(words).view(np.uint32)


def gptq(t, p, bits, offset):
    """Codes [O, I], scales and zero points [O, G], group of each column."""
    columns = t[f"{p}.g_idx"].shape[0]
    scales = t[f"{p}.scales"].astype(np.float32)
    rows = scales.shape[1]
    codes = stream(rows_of(t[f"{p}.qweight"].T), bits, columns)
    zeros = stream(rows_of(t[f"{p}.qzeros"]), bits, rows) + offset
    return codes, scales.T, zeros.T, t[f"{p}.g_idx"]


def nibbles(words):
    """Columns of awq's words, eight in each."""
    words = words.view(np.uint32)
    values = np.empty((words.shape[0], words.shape[1], 8), np.int64)
    for k, column in enumerate(AWQ_ORDER):
        values[:, :, column] = (words >> np.uint32(4 * k)) & np.uint32(15)
    return values.reshape(words.shape[0], -1)


def awq(t, p, group):
    codes = nibbles(t[f"{p}.qweight"]).T
    scales = t[f"{p}.scales"].astype(np.float32).T
    zeros = nibbles(t[f"{p}.qzeros"]).T
    group = group if group > 0 else codes.shape[1]
    return codes, scales, zeros, np.arange(codes.shape[1]) // group


def compressed(t, p, scheme, packed):
    """Signed values are offset by 2^(b-1) to be the run's codes."""
    bits = scheme["num_bits"]
    middle = 2 ** (bits - 1)
    scales = t[f"{p}.weight_scale"].astype(np.float32)
    if packed:
        rows, columns = (int(d) for d in t[f"{p}.weight_shape"])
        codes = stream(rows_of(t[f"{p}.weight_packed"]), bits, columns)
    else:
        codes = t[f"{p}.weight"].astype(np.int64) + middle
        rows, columns = codes.shape
    if scheme["symmetric"]:
        zeros = np.full(scales.shape, middle)
    else:
        zeros = stream(rows_of(t[f"{p}.weight_zero_point"].T), bits, rows).T
    group = scheme["group_size"] if scheme["strategy"] == "group" else columns
    return codes, scales, zeros, np.arange(columns) // group


def unpack(form, tensors, p, config):
    if form == "awq":
        assert config["version"] == "gemm" and config["bits"] == 4
        return awq(tensors, p, config["group_size"])
    if form in ("gptq", "gptq_v2"):
        assert config["checkpoint_format"] == form and not config["desc_act"]
        return gptq(tensors, p, config["bits"], 1 if form == "gptq" else 0)
    (group,) = config["config_groups"].values()
    return compressed(tensors, p, group["weights"], config["format"] == "pack-quantized")


def check_layouts(report, case, what, form, folder, ours):
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    tensors = load_file(folder / "model.safetensors")
    linears = [name[: -len(".codes")] for name in ours if name.endswith(".codes")]
    differing = []
    for name in linears:
        found = unpack(form, tensors, name.removesuffix(".weight"), config)
        codes, scales, zeros, group_of = found
        weights = (codes - zeros[:, group_of]).astype(np.float32) * scales[:, group_of]
        pairs = (
            ("codes", codes, ours[f"{name}.codes"]),
            ("scales", scales, ours[f"{name}.scale"]),
            ("zeros", zeros, ours[f"{name}.zero"]),
            ("weights", weights, ours[name]),
        )
        differing += [f"{part} of {name}" for part, a, b in pairs if not np.array_equal(a, b)]
    weights = sum(ours[name].size for name in linears)
    found = differing[0] if differing else f"{len(linears)} linears, {weights} weights bit for bit"
    report.line(case, what, linears and not differing, found)


# -- models -------------------------------------------------------------------------------------


def apply_matrices(model, folder):
    """What transform_config asks for, with the matrices of the folder."""
    import torch

    config = json.loads((folder / "config.json").read_text()).get("quantization_config", {})
    if "transform_config" not in config:
        return
    from compressed_tensors.transform import TransformConfig, apply_transform_config

    described = TransformConfig.model_validate(config["transform_config"])
    apply_transform_config(model, described)
    stored = load_file(folder / "model.safetensors")
    names = [f"{name}_input.weight" for name in described.config_groups]
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if any(name.endswith(f".{end}") for end in names):
            parameter.data.copy_(torch.from_numpy(stored[name]))


def logits_of(folder, ids):
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    apply_matrices(model, folder)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
    return logits.float().numpy()


def apart(a, b):
    """Root-mean-square and largest difference, in parts of b's."""
    difference = a.astype(np.float64) - b
    rms = np.sqrt((difference**2).mean() / (b.astype(np.float64) ** 2).mean())
    return rms, np.abs(difference).max() / np.abs(b).max()


def close_tokens(a, b):
    """How many tokens' logits agree to float32's last digits. Where activations are quantized, the
    others had a rounding that fell the other way, somewhere below."""
    rms = np.sqrt(((a - b) ** 2).mean(axis=1) / (b**2).mean(axis=1))
    return f"{(rms < 1e-5).sum()} of {len(rms)} tokens to 1e-5"


def check_model(report, case, what, form, folder, ours):
    limit = HF_LIMIT if form == "hf" else PACKED_LIMIT
    # Stock code runs the activations only where the folder's description asks for it.
    kind = "tokens" if form == "compressed-tensors" else "weights"
    logits = logits_of(folder, ours["ids"])
    expected = ours[f"logits.{form}.{kind}"]
    rms, top = apart(logits, expected)
    found = f"rms {rms:.1e} (limit {limit:.0e}), max {top:.1e}, {close_tokens(logits, expected)}"
    report.line(case, what, rms < limit, found)


def check_tokenizer(report, case, what, folder, expected):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(expected["text"], add_special_tokens=False)["input_ids"]
    report.line(case, what, ids == expected["tokens"], f"{len(ids)} tokens")


def attempt(check, report, case, what, *rest):
    """Runs a check. A reader that raises has missed it; the first of its words are said."""
    try:
        check(report, case, what, *rest)
    except Exception as error:  # whatever a reader raises
        traceback.print_exc(limit=-3)
        said = str(error).strip().split("\n")[0]
        report.line(case, what, False, f"{type(error).__name__}: {said[:160]}")


def check_case(report, folder, layouts_only):
    case = folder.name
    expected = json.loads((folder / "ours" / "expect.json").read_text())
    if "weights" in expected:
        float4.check(report, attempt, case, folder, expected, layouts_only)
        return
    ours = load_file(folder / "ours" / "model.safetensors")
    for form in expected["formats"]:
        place = folder / form
        if form != "hf":
            attempt(check_layouts, report, case, f"layout     {form}", form, place, ours)
        if not layouts_only and form in ("hf", "compressed-tensors"):
            attempt(check_model, report, case, f"model      {form}", form, place, ours)
    if not layouts_only and "tokens" in expected:
        attempt(check_tokenizer, report, case, "tokenizer", folder / "run", expected)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("cases", nargs="*", help="names of folders in DIR; all of them by default")
    parser.add_argument("--layouts", action="store_true", help="unpacking alone: needs NumPy only")
    args = parser.parse_args()
    report = Report()
    folders = sorted(path.parent for path in args.dir.glob("*/ours"))
    for folder in folders:
        if not args.cases or folder.name in args.cases:
            check_case(report, folder, args.layouts)
    print(f"{report.missed} missed" if report.missed else "all as expected")
    sys.exit(1 if report.missed else 0)


if __name__ == "__main__":
    main()
