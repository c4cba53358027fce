"""Precision by flags: TensorRT 8.6 (JetPack 6.0) and 10.x before 10.13 (JetPack 6.1, 6.2).

The graph's tensors are FP32; flags allow the builder to compute in less, and single layers are held to FP32.
"""

from __future__ import annotations

import tensorrt as trt

from runtime.trt.library import STRONGLY_TYPED, ReleaseRange

SERVES = ReleaseRange(below=STRONGLY_TYPED)


def network_flags() -> int:
    """8.6 must be asked for the explicit batch; 10.x ignores it."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)


def set_precision(
    config: trt.IBuilderConfig, network: trt.INetworkDefinition, precision: str
) -> tuple[str, ...]:
    """Allows 16 or 8 bits, and holds LayerNorm, softmax and a head in float to FP32.

    INT8 comes from the graph's Q/DQ; FP16 is allowed beside it for what is not quantised.

    Args:
        config: gets the flags.
        network: parsed.
        precision: fp32 sets nothing.

    Returns:
        The flags, by TensorRT's names, and how many layers were held.
    """
    if precision == "fp32":
        return ()
    flags = [trt.BuilderFlag.FP16, trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS]
    if precision == "int8":
        flags.append(trt.BuilderFlag.INT8)
    for flag in flags:
        config.set_flag(flag)
    held = hold_in_float(network)
    return (*(flag.name for flag in flags), f"{held} layers held in FP32")


def hold_in_float(network: trt.INetworkDefinition) -> int:
    """Holds LayerNorm, softmax, and the head, if it is not quantised, to FP32; gives their number.

    16 bits overflow in LayerNorm's sums (TensorRT#3657, #4723), and the head's logits decide the mask.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    sensitive = (trt.LayerType.NORMALIZATION, trt.LayerType.SOFTMAX)
    held = {i for i, layer in enumerate(layers) if layer.type in sensitive} | _head_layers(network, layers)
    for i in held:
        layers[i].precision = trt.DataType.FLOAT
        for j in range(layers[i].num_outputs):
            output = layers[i].get_output(j)
            if output is not None and output.dtype in (trt.DataType.FLOAT, trt.DataType.HALF):
                layers[i].set_output_type(j, trt.DataType.FLOAT)
    return len(held)


def _head_layers(network: trt.INetworkDefinition, layers: list[trt.ILayer]) -> set[int]:
    """Indices of the last weighted layer and of what lies between it and the network's outputs."""
    weighted = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    producers = {
        output.name: i
        for i, layer in enumerate(layers)
        for output in (layer.get_output(j) for j in range(layer.num_outputs))
        if output is not None
    }
    names = [network.get_output(i).name for i in range(network.num_outputs)]
    found: set[int] = set()
    while names:
        index = producers.get(names.pop())
        if index is None or index in found or layers[index].type == trt.LayerType.CONSTANT:
            continue
        inputs = [layers[index].get_input(j) for j in range(layers[index].num_inputs)]
        sources = [tensor.name for tensor in inputs if tensor is not None]
        if layers[index].type == trt.LayerType.DEQUANTIZE:
            continue
        if layers[index].type in weighted:
            types = [layers[producers[name]].type for name in sources if name in producers]
            if trt.LayerType.DEQUANTIZE not in types:
                found.add(index)
            continue
        found.add(index)
        names += sources
    return found
