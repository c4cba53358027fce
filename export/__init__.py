"""Student or teacher bundle → ONNX or OpenVINO, FP32, FP16 or INT8, behind a parity gate."""
