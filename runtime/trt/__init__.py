"""TensorRT on the device: builds an engine from ONNX, opens it, runs it. No torch, no onnx."""
