"""Sharding: modules that do not fit on one device, split over the ranks by torch's `fully_shard`.

Every rank holds a part of each weight; a block's weights are gathered when the block is called, and
let go of after it. So all ranks have to call a sharded module the same number of times.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.export import register_dataclass

from students import Features, UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.engine.learner import Learner
    from teachers import Teacher

# torch looks for tensors in what a sharded module returns, to gather its weights on the way back.
register_dataclass(Features, serialized_type_name="students.Features")


def shard_learner(learner: Learner, accelerator: Accelerator) -> None:
    """Shard a student by its blocks, and all else of it with its adapters as one, in place.

    Gradients, and an optimiser that is made after this, are sharded alike. Weights go to the device
    a block at a time.

    Raises:
        UserError: if a trained weight is a single number, which cannot be split.
    """
    single = {parameter for parameter in learner.parameters() if parameter.ndim == 0}
    if any(parameter.requires_grad for parameter in single):
        raise UserError(
            f"train.shard: {learner.student.arch} trains a weight that is a single number, which "
            "cannot be split over processes; set it to false"
        )
    mesh = _all_ranks(accelerator)
    for parameter in single:
        parameter.data = parameter.data.to(accelerator.device)
    for block in blocks(learner.student.model):
        fully_shard(block, mesh=mesh, ignored_params=single)
    fully_shard(learner, mesh=mesh, ignored_params=single)
    register_fsdp_forward_method(learner, "encode")


def shard_teacher(teacher: Teacher, accelerator: Accelerator) -> None:
    """Shard the blocks of a frozen teacher's encoder, in place; the rest of it, little beside them,
    is whole on every rank, since decoders and position tables are used outside a forward pass.

    Raises:
        UserError: if it has no blocks.
    """
    mesh, found = _all_ranks(accelerator), list(blocks(teacher.encoder))
    if not found:
        raise UserError(f"{teacher.info.source}: has no blocks that could be sharded")
    for block in found:
        single = {parameter for parameter in block.parameters() if parameter.ndim == 0}
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=single)
    # The root has no weights of its own: it lets a block be gathered while the one before works.
    rest = {parameter for parameter in teacher.parameters() if not isinstance(parameter, DTensor)}
    fully_shard(teacher, mesh=mesh, ignored_params=rest)
    teacher.to(accelerator.device)


def is_sharded(module: nn.Module) -> bool:
    """Whether all ranks have to call this module together."""
    return isinstance(module, FSDPModule)


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The repeated parts of an encoder: members of its lists of modules that are made of several
    layers with weights; the innermost, where a stage is a list of blocks itself."""
    for child in model.children():
        if not isinstance(child, nn.ModuleList | nn.Sequential):
            yield from blocks(child)
            continue
        for member in child:
            inner = list(blocks(member))
            layers = [part for part in member.children() if any(True for _ in part.parameters())]
            if inner:
                yield from inner
            elif len(layers) > 1:
                yield member


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered from the ranks that share it; all of them call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def split_like(tensor: Tensor, held: Tensor) -> Tensor:
    """A whole tensor that every rank has, split as `held` is; itself if `held` is not."""
    if not isinstance(held, DTensor):
        return tensor
    tensor = tensor.to(held.device, held.dtype)
    return distribute_tensor(tensor, held.device_mesh, held.placements, src_data_rank=None)


def without_weights(learner: Learner) -> Learner:
    """A copy with the same buffers, whose weights have shapes and no memory."""
    weights = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for parameter in learner.parameters()
    }
    return copy.deepcopy(learner, weights)


def with_weights(learner: Learner, tensors: Mapping[str, Tensor]) -> Learner:
    """What `without_weights` made, with these weights."""
    learner.load_state_dict(dict(tensors), assign=True)
    return learner


def _all_ranks(accelerator: Accelerator) -> DeviceMesh:
    return init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
