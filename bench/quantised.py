"""Makes int8 copies of the image classifiers of the benchmark: `quantised.py FOLDER` adds NAME_qdq.onnx beside NAME.onnx.

By ONNX Runtime's static quantisation as its documentation advises for x86 with VNNI: QDQ, activations as uint8, weights as int8 by channel,
ranges from eight seeded pictures.

Needs: onnxruntime onnx numpy sympy
"""
import pathlib
import sys
import tempfile

import numpy
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

NAMES = ("resnet50", "mobilenet_v2")


class Pictures(CalibrationDataReader):
    def __init__(self, count=8):
        numbers = numpy.random.default_rng(11)
        self.left = [numbers.standard_normal((1, 3, 224, 224), numpy.float32) for _ in range(count)]

    def get_next(self):
        return {"x": self.left.pop()} if self.left else None


def main(folder):
    for name in NAMES:
        out = folder / f"{name}_qdq.onnx"
        if out.exists():
            continue
        with tempfile.TemporaryDirectory() as work:
            ready, part = pathlib.Path(work) / "ready.onnx", pathlib.Path(work) / "part.onnx"
            quant_pre_process(str(folder / f"{name}.onnx"), str(ready), skip_symbolic_shape=True)
            quantize_static(
                str(ready),
                str(part),
                Pictures(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            out.write_bytes(part.read_bytes())
        print(f"{out}: {out.stat().st_size >> 20} MiB", flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
