#!/usr/bin/env python3
"""A full fine-tune step of one ONNX network in PyTorch and in pawlatch-trainer, in turn.

usage: step.py STEP NETWORK.onnx [BATCH [ROUNDS]]

STEP is the program that `cargo bench --bench step --no-run` names. Needs torch and onnx. Both train
every parameter on noise with AdamW, on as many threads as there are cores. Prints JSON: medians of
the rounds in seconds, the median of their ratios, and the most memory of either in MB.
"""
import json
import os
import resource
import statistics
import subprocess
import sys
import time

STEPS = 6


def torch_step(path, batch):
    """One round in PyTorch, in a process of its own: seconds and MB."""
    import onnx
    import torch
    from onnx import numpy_helper

    torch.set_num_threads(os.cpu_count())
    graph = onnx.load(path).graph
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    weights = {k: torch.tensor(v.astype("float32"), requires_grad=True) for k, v in constants.items() if v.ndim}

    def forward(x):
        values = {graph.input[0].name: x}
        get = lambda name: values[name] if name in values else weights.get(name)
        for node in graph.node:
            at = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            given = [get(name) for name in node.input]
            if node.op_type == "Conv":
                top, left, bottom, right = at.get("pads", [0] * 4)
                even = (top, left) == (bottom, right)
                x = given[0] if even else torch.nn.functional.pad(given[0], (left, right, top, bottom))
                y = torch.nn.functional.conv2d(x, *given[1:], stride=at.get("strides", 1),
                                               padding=(top, left) if even else 0, groups=at.get("group", 1))
            elif node.op_type == "Clip":
                low, high = (float(constants[name]) for name in node.input[1:])
                y = torch.clamp(given[0], low, high)
            elif node.op_type == "Relu":
                y = torch.relu(given[0])
            elif node.op_type == "Add":
                y = given[0] + given[1]
            elif node.op_type == "GlobalAveragePool":
                y = given[0].mean((2, 3), keepdim=True)
            elif node.op_type in ("Flatten", "Reshape"):
                y = given[0].flatten(1)
            elif node.op_type == "Gemm":
                y = torch.nn.functional.linear(*given)
            elif node.op_type == "Cast":
                y = given[0]
            else:
                raise SystemExit(f"{node.op_type} is not known here")
            values[node.output[0]] = y
        return values[graph.output[0].name]

    optimiser = torch.optim.AdamW(weights.values(), lr=1e-6)
    seconds = []
    for _ in range(STEPS):
        began = time.perf_counter()
        logits = forward(torch.rand(batch, 3, 224, 224) * 2 - 1)
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(batch) % logits.shape[1])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([w for w in weights.values() if w.grad is not None], 5.0)
        optimiser.step()
        seconds.append(time.perf_counter() - began)
    print(statistics.median(seconds), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, torch.__version__)


def main():
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    step, network = sys.argv[1:3]
    batch, rounds = [*map(int, sys.argv[3:5]), *[16, 5][len(sys.argv[3:5]):]]
    ours, theirs = [], []
    for _ in range(rounds):
        said = subprocess.check_output([step, network, str(batch), str(STEPS)], text=True)
        ours.append(tuple(float(v) for v in said.splitlines()[-1].split()))
        said = subprocess.check_output([sys.executable, __file__, "--torch", network, str(batch)], text=True).split()
        theirs.append((float(said[0]), float(said[1])))
    print(json.dumps({
        "network": os.path.basename(network), "batch": batch, "threads": os.cpu_count(), "torch": said[2],
        "ours_s": statistics.median(s for s, _ in ours), "torch_s": statistics.median(s for s, _ in theirs),
        "ratio": statistics.median(a / b for (a, _), (b, _) in zip(ours, theirs)),
        "ours_mb": max(m for _, m in ours), "torch_mb": max(m for _, m in theirs),
    }, indent=1))


if sys.argv[1:2] == ["--torch"]:
    torch_step(sys.argv[2], int(sys.argv[3]))
else:
    main()
