"""What TensorRT asks of an INT8 graph, checked on the ONNX file: an engine is built on a device that is not here."""
