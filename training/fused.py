"""LoRA's sum in fewer passes over the activations: x W + (x A) (s B) accumulated in place.

peft multiplies the adapter's full-width output by the scale and adds it, which on a CPU costs as
much as a matrix product; here the scale goes into the small matrix. Same mathematics.
"""

from typing import Any


def fuse_lora(model: Any) -> int:
    """Replace the forward pass of every plain LoRA linear layer of `model`; return how many.

    For training in float32 with one active adapter. Layers with DoRA, dropout, bias on B or
    another weight layout keep peft's own forward.
    """
    from peft.tuners.lora import Linear

    fused = 0
    for layer in model.modules():
        if type(layer) is Linear and _is_plain(layer):
            layer.forward = _fused_forward(layer)
            fused += 1
    return fused


def _is_plain(layer: Any) -> bool:
    import torch

    names = layer.active_adapters
    return (
        len(names) == 1
        and names[0] in layer.lora_A
        and type(layer.base_layer) is torch.nn.Linear
        and layer.base_layer.weight.dtype is torch.float32
        and not layer.merged
        and not layer.fan_in_fan_out
        and not layer.use_dora.get(names[0], False)
        and not layer.lora_bias.get(names[0], False)
        and isinstance(layer.lora_dropout[names[0]], torch.nn.Identity)
    )


def _fused_forward(layer: Any) -> Any:
    from torch.nn.functional import linear

    name = layer.active_adapters[0]
    down, up, base = layer.lora_A[name], layer.lora_B[name], layer.base_layer

    def forward(inputs: Any) -> Any:
        flat = inputs.reshape(-1, inputs.shape[-1])
        output = linear(flat, base.weight, base.bias)
        scaled = up.weight * layer.scaling[name]
        output.addmm_(linear(flat, down.weight), scaled.t())
        return output.view(*inputs.shape[:-1], -1)

    return forward
