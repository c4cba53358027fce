"""What TensorRT asks of an INT8 graph, checked on the ONNX file: an engine is built on a device that is not here."""

from export.rules.check import VERSIONS, check_graph, require_clean
from export.rules.finding import Finding

__all__ = ["VERSIONS", "Finding", "check_graph", "require_clean"]
