"""Opening a model up: replace modules, freeze, and read or write what is trained.

The adapter is, by definition, the trainable parameters; saving and loading are the same for every method and head.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lorakit.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

WRAPPED = "frozen"
"""Name under which an adapted layer holds the module that it replaced."""


def canonical(name: str) -> str:
    """A parameter's name as in the untouched model: without the wrapper that holds a replaced module."""
    return name.replace(f".{WRAPPED}.", ".")


def replace(model: "nn.Module", path: str, module: "nn.Module") -> None:
    """Put `module` where `path` points."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def freeze(model: "nn.Module") -> None:
    """Let nothing be trained; methods then release what is theirs."""
    model.requires_grad_(False)


def release(parameter: "nn.Parameter") -> None:
    """Let a parameter be trained, in float32: in 16 bits small updates would round away."""
    import torch

    if parameter.dtype != torch.float32:
        parameter.data = parameter.data.float()
    parameter.requires_grad_(True)


def biases(model: "nn.Module") -> "dict[str, nn.Parameter]":
    """Every bias by its name, of projections and norms alike."""
    return {name: parameter for name, parameter in model.named_parameters() if name.rpartition(".")[2] == "bias"}


def even_norms(model: "nn.Module") -> None:
    """Bring layer norms of which a part is released to float32 as a whole: their CPU kernel takes no mixed weights."""
    from torch import nn

    for norm in model.modules():
        if isinstance(norm, nn.LayerNorm) and any(p.requires_grad for p in norm.parameters(recurse=False)):
            norm.float()


def trainable_parameters(model: "nn.Module") -> "dict[str, nn.Parameter]":
    """What is trained, by canonical name, in the model's order."""
    return {canonical(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def saved_buffers(model: "nn.Module") -> "dict[str, Tensor]":
    """What training needs and does not change, by canonical name: the buffers in a module's `saved_buffers`."""
    return {
        canonical(f"{path}.{name}"): module.get_buffer(name)
        for path, module in model.named_modules()
        for name in getattr(module, "saved_buffers", ())
    }


def whole(tensor: "Tensor") -> "Tensor":
    """A tensor of which each process holds a part (a DTensor), put together; all processes must ask. Others as is."""
    full: Tensor = getattr(tensor, "full_tensor", lambda: tensor)()
    return full


def like(value: "Tensor", place: "Tensor") -> "Tensor":
    """A whole tensor on the device of `place`, and this process's part of it where `place` is a DTensor."""
    moved = value.to(place.device)
    if not hasattr(place, "full_tensor"):
        return moved
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(place, DTensor)
    # all have the same value, so that nothing need be sent
    part: Tensor = distribute_tensor(moved, place.device_mesh, place.placements, src_data_rank=None)
    return part


def trainable_state(model: "nn.Module") -> "dict[str, Tensor]":
    """The adapter: a detached CPU copy of every trainable parameter, and of the saved buffers."""
    tensors = {**trainable_parameters(model), **saved_buffers(model)}
    return {name: whole(tensor.detach()).to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def load_trainable(model: "nn.Module", state: "Mapping[str, Tensor]", source: str) -> None:
    """Write an adapter into a model that the same recipe has prepared; meta tensors become real ones.

    Args:
        model: Prepared by the same methods.
        state: Canonical name → tensor.
        source: Where the state came from, for the error.

    Raises:
        CheckpointError: A name is missing, unexpected, or of another shape; lists them all.
    """
    import torch

    wanted: dict[str, Tensor] = {**trainable_parameters(model), **saved_buffers(model)}
    problems = [f"{source}: {name} is missing" for name in wanted.keys() - state.keys()]
    problems += [f"{source}: {name} is not part of this model" for name in state.keys() - wanted.keys()]
    problems += [
        f"{source}: {name} has shape {tuple(state[name].shape)}, the recipe makes {tuple(wanted[name].shape)}"
        for name in wanted.keys() & state.keys()
        if wanted[name].shape != state[name].shape
    ]
    if problems:
        raise CheckpointError(*sorted(problems))
    _materialise(model, {id(tensor): state[name] for name, tensor in wanted.items() if tensor.is_meta})
    with torch.no_grad():
        for name, tensor in wanted.items():
            if not tensor.is_meta:
                tensor.copy_(like(state[name], tensor))


def _materialise(model: "nn.Module", values: "Mapping[int, Tensor]") -> None:
    """Replace meta parameters and buffers, by their ids, by real ones, wherever each is registered."""
    from torch import nn

    made: dict[int, nn.Parameter] = {}
    for module in model.modules() if values else ():
        for name, parameter in list(module._parameters.items()):
            if (place := id(parameter)) in values:
                if place not in made:
                    made[place] = nn.Parameter(values[place].clone())
                module._parameters[name] = made[place]
        for name, buffer in list(module._buffers.items()):
            if id(buffer) in values:
                module._buffers[name] = values[id(buffer)].clone()
