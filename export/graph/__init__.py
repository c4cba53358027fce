"""The ONNX graph: written, folded, typed, converted; and a read-only view of it."""
