"""The shortest honest loop from pictures to masks, to measure ourselves against: OpenVINO and OpenCV, nothing of ours.

`python hand_loop.py BUNDLE PICTURES OUT THREADS` in an environment with openvino and opencv-python-headless prints one
JSON line: how many pictures, and the seconds of processor and wall that they took without the start. OpenCV is no
dependency of ours, so `benchmarks.checks.stages --hand-loop PYTHON` runs this file with another interpreter.

It checks nothing: 8-bit grey or RGB pictures, one class, no record, and its masks may differ at edges by a pixel.
"""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np


def main(bundle: Path, pictures: Path, out: Path, threads: int) -> None:
    """Reads every picture, writes every mask."""
    import cv2
    import openvino

    manifest = json.loads((bundle / "manifest.json").read_text())
    takes, gives = manifest["input"], manifest["output"]
    colour = cv2.IMREAD_COLOR if takes["channels"] == 3 else cv2.IMREAD_GRAYSCALE
    shrink = cv2.INTER_AREA if takes["resize_filter"] == "area" else cv2.INTER_LINEAR
    size = takes["width_px"], takes["height_px"]
    edge = gives.get("temperature", 1.0) * math.log(gives["threshold"] / (1 - gives["threshold"]))
    cv2.setNumThreads(1)
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(str(bundle / "model.xml"), "CPU", settings).create_infer_request()
    request.infer()
    given, found = request.get_input_tensor().data, request.get_output_tensor().data
    files = sorted(path for path in pictures.iterdir() if path.is_file())
    begin, begin_cpu = time.perf_counter(), time.process_time()
    for path in files:
        picture = cv2.imread(str(path), colour)
        height, width = picture.shape[:2]
        if colour == cv2.IMREAD_COLOR:
            picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        given[0] = cv2.resize(picture, size, interpolation=shrink).reshape(given.shape[1:])
        request.infer()
        logits = cv2.resize(found[0, 0], (width, height), interpolation=cv2.INTER_LINEAR)
        mask = (logits >= edge).astype(np.uint8) * 255
        cv2.imwrite(str(out / f"{path.stem}.png"), mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    seconds = {"cpu_s": time.process_time() - begin_cpu, "wall_s": time.perf_counter() - begin}
    print(json.dumps({"pictures": len(files), **seconds, "opencv": cv2.__version__}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
