# What 8 bits would cost and gain: int8.py MODEL_DIR DATA_DIR. Prints one JSON object.
#
# Quantises the classifier with onnxruntime (static, per channel, calibrated on training pictures)
# and compares both on the validation pictures, prepared alike.
import collections
import csv
import json
import pathlib
import sys
import tempfile
import time
import tomllib

import numpy
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image

CALIBRATION = 200
RUNS = 30

model_dir, data = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
manifest = tomllib.loads((model_dir / "model.toml").read_text())
_, _, height, width = manifest["input"]["shape"]
mean, std = numpy.float32(manifest["input"]["mean"]), numpy.float32(manifest["input"]["std"])
fraction = manifest["input"]["resize"].get("fraction", 1.0)
names = [manifest["output"]["name"]]


def prepare(path):
    picture = Image.open(path).convert("RGB")
    side = min(picture.size) * fraction
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    box = (left, top, left + side, top + side)
    picture = picture.resize((width, height), Image.BICUBIC, box=box)
    return (((numpy.asarray(picture, numpy.float32) - mean) / std).transpose(2, 0, 1))[None]


def pictures(split):
    with open(data / "MANIFEST.csv") as table:
        return [(data / row["file"], row["label"]) for row in csv.DictReader(table)
                if row["file"].startswith("classify/") and row["split"] == split]


def floats(path, to):
    """The same network with its 16-bit weights as floats."""
    model = onnx.load(path)
    made = {}
    for node in list(model.graph.node):
        if node.op_type == "Cast" and node.input[0] in (i.name for i in model.graph.initializer):
            made[node.output[0]] = node.input[0]
            model.graph.node.remove(node)
    for one in model.graph.initializer:
        if one.data_type == onnx.TensorProto.FLOAT16:
            one.CopyFrom(onnx.numpy_helper.from_array(
                onnx.numpy_helper.to_array(one).astype(numpy.float32), one.name))
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = made.get(name, name)
    onnx.save(model, to)


class Reader(CalibrationDataReader):
    def __init__(self, name):
        chosen = pictures("train")
        step = max(1, len(chosen) // CALIBRATION)
        self.feeds = iter([{name: prepare(path)} for path, _ in chosen[::step]])

    def get_next(self):
        return next(self.feeds, None)


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def dog(logits):
    """P(dog) by the manifest's labels and calibration; and the best of dog, cat and the rest."""
    calibration = manifest.get("calibration", {})
    x = logits / calibration.get("temperature", 1.0)
    p = numpy.exp(x - x.max())
    classes = {}
    for name, labels in manifest["labels"].get("classes", {}).items():
        for label in labels:
            if isinstance(label, list):
                classes.update((i, name) for i in range(label[0], label[1] + 1))
            elif isinstance(label, str):
                classes[manifest["labels"]["names"].index(label)] = name
            else:
                classes[label] = name
    mass = collections.Counter()
    for i, value in enumerate(p):
        mass[classes.get(i, manifest["labels"].get("rest", "nothing"))] += float(value)
    for name, bias in calibration.get("bias", {}).items():
        mass[name] *= numpy.exp(bias)
    total = sum(mass.values())
    cat, rest = mass["cat"], total - mass["cat"] - mass["dog"]
    best = max([(mass["dog"], "dog"), (cat, "cat"), (rest, "other")])[1]
    return mass["dog"] / total, best


def measure(run, prepared):
    scores = [(label, *dog(run.run(names, {run.get_inputs()[0].name: x})[0][0]))
              for x, label in prepared]
    dogs = numpy.array([p for label, p, _ in scores if label == "dog"])
    rest = numpy.array([p for label, p, _ in scores if label != "dog"])
    threshold = numpy.sort(rest)[::-1][int(0.005 * len(rest))]
    return scores, {
        "accuracy": numpy.mean([label == best for label, _, best in scores]),
        "frr_at_far_0.5_percent": float(numpy.mean(dogs <= threshold)),
    }


def median_ms(run, x):
    feed = {run.get_inputs()[0].name: x}
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run.run(names, feed)
        times.append(time.perf_counter() - start)
    return float(numpy.median(times)) * 1e3


with tempfile.TemporaryDirectory() as scratch:
    scratch = pathlib.Path(scratch)
    floats(model_dir / manifest["file"], scratch / "floats.onnx")
    quant_pre_process(str(scratch / "floats.onnx"), str(scratch / "ready.onnx"))
    quantize_static(
        str(scratch / "ready.onnx"), str(scratch / "int8.onnx"), Reader(manifest["input"]["name"]),
        quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    prepared = [(prepare(path), label) for path, label in pictures("val")]
    full, small = session(scratch / "floats.onnx"), session(scratch / "int8.onnx")
    (a, floating), (b, quantised) = measure(full, prepared), measure(small, prepared)
    ratios = [median_ms(small, prepared[0][0]) / median_ms(full, prepared[0][0]) for _ in range(5)]
    print(json.dumps({
        "model": manifest["name"],
        "pictures": len(prepared),
        "calibration_pictures": CALIBRATION,
        "floats": floating,
        "int8": quantised,
        "same_answer": float(numpy.mean([x[2] == y[2] for x, y in zip(a, b)])),
        "largest_change_of_p_dog": float(max(abs(x[1] - y[1]) for x, y in zip(a, b))),
        "time_of_int8_in_onnxruntime": float(numpy.median(ratios)),
    }))
