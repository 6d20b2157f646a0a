"""Times state-spaces/mamba's selective scan, forward and backward, on the GPU of this machine, as bench/gpu.ts times ours.

usage: peer.py DIR [--out FILE]

DIR holds their compiled extension, selective_scan_cuda*.so; torch is needed. Same shapes, bf16, D and z and softplus of the
biased delta, inputs rotated among sets that no cache holds, medians of CUDA events. Prints JSON lines and appends them to FILE.
Exits with 3 when torch, the extension or the GPU is not there.
"""

import argparse
import datetime
import json
import statistics
import sys
from pathlib import Path

STATE = 16
SHAPES = [(5120, 8192), (5120, 65536), (2048, 8192), (1536, 8192)]  # inner, length
WARMUP, SAMPLES, SETS = 5, 60, 3


def unavailable(reason):
    print(f"not run: {reason}")
    sys.exit(3)


def inputs(torch, inner, length):
    """Their layout: channels before tokens."""

    def wide(dtype):
        return torch.randn(1, inner, length, device="cuda", dtype=dtype)

    half = torch.bfloat16
    bands = [torch.randn(1, 1, STATE, length, device="cuda", dtype=half) for _ in range(2)]
    a = -torch.rand(inner, STATE, device="cuda") - 1e-3
    vectors = [torch.randn(inner, device="cuda") for _ in range(2)]
    return {"u": wide(half), "delta": wide(half), "A": a, "B": bands[0], "C": bands[1], "D": vectors[0], "z": wide(half), "bias": vectors[1]}


def milliseconds(torch, calls):
    """One time per call, the calls of all sets in turn."""
    for i in range(WARMUP):
        calls[i % len(calls)]()
    events = []
    for i in range(SAMPLES):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        calls[i % len(calls)]()
        end.record()
        events.append((begin, end))
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in events]


def measure(torch, scan, inner, length):
    sets = [inputs(torch, inner, length) for _ in range(SETS)]

    def forward(s):
        return scan.fwd(s["u"], s["delta"], s["A"], s["B"], s["C"], s["D"], s["z"], s["bias"], True)

    saved = [forward(s) for s in sets]  # out, chunk states, gated out
    grads = [torch.randn_like(s["u"]) for s in sets]

    def backward(s, kept, dout):
        out, x = kept[0], kept[1]
        return scan.bwd(s["u"], s["delta"], s["A"], s["B"], s["C"], s["D"], s["z"], s["bias"], dout, x, out, None, True, False)

    yield "", milliseconds(torch, [lambda s=s: forward(s) for s in sets])
    yield " backward", milliseconds(torch, [lambda s=s, k=k, g=g: backward(s, k, g) for s, k, g in zip(sets, saved, grads)])


def bytes_moved(inner, length, backward):
    wide, bands = 2 * inner * length, 2 * STATE * length
    return (5 + 3 if backward else 4) * wide + (4 if backward else 2) * bands


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.folder)
    try:
        import torch
    except ImportError as error:
        unavailable(f"torch cannot be imported: {error}")
    if not torch.cuda.is_available():
        unavailable("torch sees no GPU")
    try:
        import selective_scan_cuda as scan
    except ImportError as error:
        unavailable(f"selective_scan_cuda cannot be imported from {arguments.folder}: {error}")
    bundle = Path(__file__).resolve().parents[2] / "bundle.json"
    commit = json.loads(bundle.read_text())["commit"] if bundle.exists() else "unknown"
    where = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "commit": commit,
        "gpu": torch.cuda.get_device_name(),
        "driver": f"torch {torch.__version__}, CUDA {torch.version.cuda}",
        "bench": "peer",
        "dtype": "bf16",
        "unit": "ms",
    }
    for inner, length in SHAPES:
        for suffix, taken in measure(torch, scan, inner, length):
            quarters = statistics.quantiles(taken, n=4)
            median = statistics.median(taken)
            line = {
                **where,
                "shape": f"state-spaces/mamba selectiveScan{suffix}: D {inner}, L {length // 1024}K, state {STATE}",
                "median": median,
                "min": min(taken),
                "max": max(taken),
                "spread": (quarters[2] - quarters[0]) / median,
                "bytes": bytes_moved(inner, length, suffix != ""),
            }
            print(json.dumps(line), flush=True)
            if arguments.out:
                with open(arguments.out, "a") as records:
                    records.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
