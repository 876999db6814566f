# Times one network in onnxruntime: ort.py FILE.onnx THREADS RUNS. Prints the median in ms.
import sys
import time

import numpy
import onnxruntime

path, threads, runs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
kinds = {"tensor(float)": numpy.float32, "tensor(int64)": numpy.int64}
feeds = {}
for one in session.get_inputs():
    shape = [size if isinstance(size, int) else 1 for size in one.shape]
    count = int(numpy.prod(shape))
    pattern = (numpy.arange(count) % 251 / 251).reshape(shape)
    feeds[one.name] = pattern.astype(kinds[one.type])
for _ in range(10):
    session.run(None, feeds)
times = []
for _ in range(runs):
    start = time.perf_counter()
    session.run(None, feeds)
    times.append(time.perf_counter() - start)
print(numpy.median(times) * 1e3)
