"""Several processes train one model: each with a copy of it (ddp), or with a part of it (fsdp)."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]

from lorakit.arch import Architecture
from lorakit.errors import RecipeError
from lorakit.recipe import Recipe
from lorakit.targets import blocks
from lorakit.world import World


def is_sharded(recipe: Recipe, world: World) -> bool:
    """Whether the model is cut into parts: a single process has nobody to share it with."""
    return recipe.train.parallel == "fsdp" and world.size > 1


def check_parallel(recipe: Recipe, precision: str, world: World) -> None:
    """Whether the recipe can be trained in this way.

    Raises:
        RecipeError: float16's loss scaling is not known to work with a model in parts.
    """
    if is_sharded(recipe, world) and precision == "float16":
        raise RecipeError("train.parallel: fsdp does not go with float16; use bfloat16 or float32, or ddp")


def shard(model: nn.Module, row: Architecture, world: World) -> None:
    """Cut a model into parts, block by block; a block is put together when it computes, and parted again after.

    Names stay; parameters become DTensors, so that optimisers must be made after this. On a GPU a block is moved there
    as it is cut: the whole model is never on one.

    Args:
        model: Prepared, on the CPU or on the device.
        row: Its architecture.
        world: All processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in _blocks(model, row):
        fully_shard(block, mesh=mesh)
    # The rest too is parted after each forward pass: between passes every parameter is a DTensor under its name.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def _blocks(model: nn.Module, row: Architecture) -> list[nn.Module]:
    if row.blocks:
        return list(blocks(model, row).values())
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def wrap(accelerator: Any, model: nn.Module, optimizer: torch.optim.Optimizer, sharded: bool) -> tuple[Any, Any]:
    """Model and optimiser, with the exchange of gradients where every process has a copy.

    Args:
        accelerator: Accelerate's.
        model: On the device, or sharded.
        optimizer: Over the model's parameters as they are.
        sharded: Whether `shard` has cut it, which then exchanges gradients too.
    """
    if sharded:
        wrapped = accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        optimizer = accelerator.prepare_optimizer(optimizer)
    else:
        with warnings.catch_warnings():  # torch's newer name for it is not known to accelerate
            warnings.filterwarnings("ignore", message=".*broadcast_buffers. is deprecated", category=FutureWarning)
            wrapped, optimizer = accelerator.prepare(model, optimizer)
    # Off comes the wrapper that makes all outputs float32: of logits over a vocabulary a copy twice as large, and one
    # of their gradient, a tenth of an e2e step. Who calls the model sets the autocast, and widens what must be wide.
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    if not sharded and accelerator.num_processes > 2 and accelerator.device.type == "cpu":
        wrapped.register_comm_hook(None, _mean_in_order)
    return wrapped, optimizer


def _mean_in_order(_: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """The processes' mean gradient, added up in the order of their ranks.

    gloo's own order depends on a gradient's place in the bucket, and DDP fills its buckets anew after the first step:
    with three processes and more, a resumed run would end with other bytes. Two numbers have one sum.
    """
    mine: Tensor = bucket.buffer()
    parts = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, mine)
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(torch.stack(parts).sum(0) / len(parts))
    return future
