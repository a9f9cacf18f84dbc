"""4-bit floats against the readers that they are for; check_exports.py runs these.

layouts     unpacking written from docs/formats.md gives the run's weights in float32, bit for bit
reader      compressed-tensors' own unpacking and dequantization in float32 give the same
weights     what transformers has for weights when it has loaded the folder: the same, in bfloat16
logits      of the model as loaded are ours with weights rounded to bfloat16; with the weights in
            float32 they are ours
greedy      the next tokens are ours, but where ours were ahead by less than two hundredths of the
            largest logit
activations what its linears read is rounded by the reader as docs/formats.md says
"""

import hashlib
import json

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

LIMIT = 1e-2
GROUPS = {"nvfp4": 16, "mxfp4": 32}
MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
VALUES = np.concatenate([MAGNITUDES, -MAGNITUDES])


def e4m3(byte):
    exponent, fraction = byte >> 3 & 15, byte & 7
    value = (8 + fraction) * 2.0 ** (exponent - 10) if exponent else fraction * 2.0**-9
    return -value if byte & 128 else value


SCALES = {
    "nvfp4": np.array([e4m3(byte) for byte in range(256)], np.float32),
    # The last byte is no number.
    "mxfp4": np.array([2.0 ** (min(byte, 254) - 127) for byte in range(256)], np.float32),
}


def raw(folder):
    """Bytes of all tensors by name: NumPy has no type for some."""
    data = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    return {
        name: (
            entry["shape"],
            data[8 + size + entry["data_offsets"][0] : 8 + size + entry["data_offsets"][1]],
        )
        for name, entry in header.items()
    }


def described(folder):
    """The numbers that config.json says."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    if config["quant_method"] == "modelopt":
        other = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
        assert other["quant_algo"] == config["quant_algo"] and other["group_size"] == 16
        assert other["exclude_modules"] == config["ignore"]
        return "nvfp4"
    return config["format"].split("-")[0]


def unpacked(tensors, p, numbers, form):
    """The weight in float32."""
    ends = (
        ("weight", "weight_scale_2")
        if form == "modelopt"
        else ("weight_packed", "weight_global_scale")
    )
    (rows, half), data = tensors[f"{p}.{ends[0]}"]
    pairs = np.frombuffer(data, np.uint8).reshape(rows, half)
    codes = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(rows, 2 * half)
    shape, data = tensors[f"{p}.weight_scale"]
    scales = SCALES[numbers][np.frombuffer(data, np.uint8).reshape(shape)]
    if numbers == "nvfp4":
        (stored,) = np.frombuffer(tensors[f"{p}.{ends[1]}"][1], np.float32)
        scales = scales * stored if form == "modelopt" else scales / stored
    return VALUES[codes] * np.repeat(scales, GROUPS[numbers], axis=1)


def digest(weight):
    return hashlib.sha256(np.ascontiguousarray(weight, np.float32).tobytes()).hexdigest()


def check_layout(report, case, what, form, folder, expected):
    tensors, numbers = raw(folder), described(folder)
    hashes = expected["weights"]
    differing, most = [], 0.0
    reference = raw(folder.parent / "compressed-tensors")
    for name in hashes:
        weight = unpacked(tensors, name.removesuffix(".weight"), numbers, form)
        if form == "modelopt":
            # It stores 1 / g: the last bits may differ.
            own = unpacked(reference, name.removesuffix(".weight"), numbers, "compressed-tensors")
            most = max(most, float((np.abs(weight - own) / np.maximum(np.abs(own), 1e-30)).max()))
            if most > 3e-7:
                differing.append(name)
        elif digest(weight) != hashes[name]:
            differing.append(name)
    found = f"{len(hashes)} linears " + (
        f"within {most:.0e}" if form == "modelopt" else "bit for bit"
    )
    report.line(case, what, hashes and not differing, differing[0] if differing else found)


def by_reader(folder, names, numbers):
    """Weights in float32 by compressed-tensors' own functions."""
    import torch
    from compressed_tensors.compressors.mx_utils import decompress_mx_scale
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    (group,) = QuantizationConfig.model_validate(config).config_groups.values()
    weights = {}
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in names:
            p = name.removesuffix(".weight")
            packed, scale = (
                file.get_tensor(f"{p}.{end}") for end in ("weight_packed", "weight_scale")
            )
            rows, half = packed.shape
            is_mx = numbers == "mxfp4"
            weights[name] = dequantize(
                x_q=unpack_fp4_from_uint8(packed, rows, 2 * half, dtype=torch.float32),
                scale=(decompress_mx_scale(scale) if is_mx else scale).to(torch.float32),
                args=group.weights,
                global_scale=None if is_mx else file.get_tensor(f"{p}.weight_global_scale"),
                dtype=torch.float32,
            )
    return weights


def check_reader(report, case, what, folder, expected):
    weights = by_reader(folder, expected["weights"], described(folder))
    differing = [n for n, w in weights.items() if digest(w.numpy()) != expected["weights"][n]]
    found = differing[0] if differing else f"{len(weights)} linears bit for bit"
    report.line(case, what, not differing, found)


def loaded(folder):
    """The folder by transformers, dequantized by it, computing in float32."""
    import torch
    import transformers

    config = transformers.CompressedTensorsConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", quantization_config=config
    )
    return model.eval()


def windows(report, case, what, logits, ours, kind):
    """Window by window: in most of them no rounding of an activation may fall the other way."""
    apart = []
    for ids, wanted in zip(ours["windows"], ours[f"logits.{kind}"]):
        off = logits(ids).astype(np.float64) - wanted
        apart.append(np.sqrt((off**2).mean() / (wanted.astype(np.float64) ** 2).mean()))
    middle = float(np.median(apart))
    same = sum(x < LIMIT for x in apart)
    found = f"rms {middle:.1e} in the middle of {len(apart)} windows, largest {max(apart):.1e}"
    report.line(case, what, middle < LIMIT, f"{found}, {same} below {LIMIT:.0e}")


def to_e2m1(u):
    """The nearest of the elements, ties to the even code."""
    size = np.minimum(np.abs(u), 6)
    bounds = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], np.float32)
    # Bound k lies between codes k and k + 1; a tie goes to the even one.
    above = np.stack([size > b if k % 2 == 0 else size >= b for k, b in enumerate(bounds)])
    return np.copysign(MAGNITUDES[above.sum(axis=0)], u)


def to_e4m3(x):
    """The nearest positive number of e4m3fn, ties to the even byte."""
    values = SCALES["nvfp4"][:127].astype(np.float64)
    at = np.clip(np.searchsorted(values, x), 1, 126)
    low, high = values[at - 1], values[at]
    up = (x - low > high - x) | ((x - low == high - x) & (at % 2 == 0))
    return np.where(up, high, low).astype(np.float32)


def quantized_tokens(x, numbers, g):
    """What docs/formats.md says of activations, in float32."""
    group = GROUPS[numbers]
    groups = x.reshape(*x.shape[:-1], -1, group)
    most = np.abs(groups).max(axis=-1, keepdims=True)
    if numbers == "mxfp4":
        bits = (most.view(np.uint32) + np.uint32(1 << 21)) & np.uint32(0x7F800000)
        scale = bits.view(np.float32) / np.float32(4)
        step = scale
        u = groups / np.where(scale == 0, np.float32(1), scale)
    else:
        scale = to_e4m3(np.clip(most / np.float32(6) * g, np.float32(2.0**-9), np.float32(448)))
        step = scale / g
        u = groups * (g / scale)
    return (to_e2m1(u) * step).reshape(x.shape)


def check_tokens(report, case, model, numbers, ids):
    """The reader's rounding of what its own linears read, against the description's."""
    import torch
    from compressed_tensors.quantization.lifecycle.forward import forward_quantize

    off, total = 0, 0

    def look(module, args):
        nonlocal off, total
        x = args[0]
        theirs = forward_quantize(module, x, "input", module.quantization_scheme.input_activations)
        g = getattr(module, "input_global_scale", None)
        g = None if g is None else g.numpy()
        off += int((theirs.numpy() != quantized_tokens(x.numpy(), numbers, g)).sum())
        total += x.numel()

    marked = [
        m
        for m in model.modules()
        if getattr(getattr(m, "quantization_scheme", None), "input_activations", None)
    ]
    handles = [module.register_forward_pre_hook(look) for module in marked]
    with torch.no_grad():
        model(torch.from_numpy(ids.astype(np.int64))[None])
    for handle in handles:
        handle.remove()
    # What lies on a bound to the last bit of float32 may fall either way.
    report.line(
        case, "activations by the reader", off <= 1e-5 * total, f"{off} of {total} numbers differ"
    )


def check_model(report, case, folder, expected, ours):
    import torch

    numbers = described(folder)
    model = loaded(folder)
    exact = by_reader(folder, expected["weights"], numbers)
    modules = dict(model.named_modules())
    differing = [
        name
        for name, weight in exact.items()
        if not torch.equal(
            modules[name.removesuffix(".weight")].weight.data.to(torch.float32),
            weight.to(torch.bfloat16).to(torch.float32),
        )
    ]
    found = differing[0] if differing else f"{len(exact)} linears bit for bit, rounded to bfloat16"
    report.line(case, "weights    as loaded", not differing, found)
    model.float()

    def logits(ids):
        with torch.no_grad():
            return model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].float().numpy()

    windows(report, case, "logits     as loaded", logits, ours, "rounded")
    same, said = greedy(logits, ours, 2 * LIMIT * np.abs(ours["logits.rounded"]).max())
    report.line(case, "greedy     as loaded", same, said)
    if "A16" not in expected["options"]["scheme"]:
        check_tokens(report, case, model, numbers, ours["windows"][0])
    for name, weight in exact.items():
        modules[name.removesuffix(".weight")].weight.data = weight
    windows(report, case, "logits     weights in float32", logits, ours, "exact")


def greedy(logits, ours, margin):
    """Token after token; after a difference that the margin allows, ours is taken."""
    ids = list(ours["windows"][0])
    excused = []
    for i, (token, ahead) in enumerate(zip(ours["greedy"], ours["margins"])):
        found = int(logits(np.array(ids))[-1].argmax())
        if found != token:
            if ahead > margin:
                said = f"token {i} is {found}, ours {token}, ahead by {ahead:.3f}"
                return False, f"{said} (margin {margin:.3f})"
            excused.append(i)
        ids.append(int(token))
    count = len(ours["greedy"])
    said = f"{count - len(excused)} of {count} tokens equal"
    return True, said + (f", {len(excused)} within the margin of {margin:.3f}" if excused else "")


def check(report, attempt, case, folder, expected, layouts_only):
    """All of it, for one case."""
    ours = load_file(folder / "ours" / "model.safetensors")
    for form in expected["formats"]:
        place = folder / form
        attempt(check_layout, report, case, f"layout     {form}", form, place, expected)
    if layouts_only:
        return
    place = folder / "compressed-tensors"
    attempt(check_reader, report, case, "reader     compressed-tensors", place, expected)
    attempt(
        lambda report, case, what: check_model(report, case, place, expected, ours),
        report,
        case,
        "model",
    )
