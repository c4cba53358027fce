"""What only TensorRT 8.6 has (JetPack 6.0)."""

from __future__ import annotations

import tensorrt as trt

from runtime.trt.library import ReleaseRange

SERVES = ReleaseRange(below=(10, 0))


def drop_tactic_sources(config: trt.IBuilderConfig) -> None:
    """Leaves cuDNN and cuBLAS out: loading them costs hundreds of MiB, and convolutions hardly use them.

    ("Init cuDNN: CPU +241 MiB" in a log of 8.x on a Jetson: ultralytics#14751.) Later releases leave them out
    themselves.
    """
    dropped = (trt.TacticSource.CUBLAS, trt.TacticSource.CUBLAS_LT, trt.TacticSource.CUDNN)
    sources: int = config.get_tactic_sources()
    for source in dropped:
        sources &= ~(1 << int(source))
    config.set_tactic_sources(sources)
