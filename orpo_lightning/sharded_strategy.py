"""FSDP2 for a Trainer: Lightning's ModelParallelStrategy, with checkpoints that every strategy can read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor

from orpo_lightning.sharding import is_sharded, whole


class FSDP2Strategy(ModelParallelStrategy):
    """Shares out weights, gradients and optimizer state over all processes; `PreferenceModule` does the rest.

    A checkpoint is one file as of any other strategy, so a run may go on under another one. (The parent
    splits a node's processes by tensors instead, writes a folder, and reads past the CheckpointIO.)

    Args:
        timeout: how long a process waits for the others.
        process_group_backend: nccl on GPUs and gloo on CPUs where left out.
    """

    def __init__(
        self, timeout: timedelta = timedelta(minutes=30), process_group_backend: str | None = None
    ) -> None:
        """Keep the settings."""
        super().__init__(
            save_distributed_checkpoint=False, process_group_backend=process_group_backend, timeout=timeout
        )

    def setup_environment(self) -> None:
        """Join the other processes: all of them share the weights."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def setup(self, trainer: lightning.Trainer) -> None:
        """Set up model and optimizers."""
        # Buffers that are gathered into for the first time there could never be used in training.
        loops: list[Any] = [trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop]
        for loop in loops:
            loop.inference_mode = False
        super().setup(trainer)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The optimizer's state is in the same file, and Lightning hands it over."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the module's weights, gathered; all ranks must call together."""
        assert self.lightning_module is not None
        state = self.lightning_module.state_dict()
        return {name: whole(value.detach()).cpu() for name, value in state.items()}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return an optimizer's state, gathered, in the form of an optimizer of whole weights."""
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = inner.state_dict()
        gathered = {
            number: {key: whole(v).cpu() if isinstance(v, Tensor) else v for key, v in values.items()}
            for number, values in state["state"].items()
        }
        return {**state, "state": gathered}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint through the CheckpointIO, which compares its digest."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give each rank its share of the checkpoint's weights; the module has compared them with its own."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        for name, value in checkpoint["state_dict"].items():
            if strict or name in own:
                own[name].copy_(_share(value, own[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give each rank its share of the optimizers' states."""
        super(ModelParallelStrategy, self).load_optimizer_state_dict(checkpoint)
        for optimizer in self.optimizers:
            for parameter, values in optimizer.state.items():
                for key, value in values.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        values[key] = _share(value, parameter)


def _share(value: Tensor, like: Any) -> Tensor:
    """Return a whole tensor as another one is shared out."""
    from torch.distributed.tensor import distribute_tensor

    if not is_sharded(like):
        return value.to(like.device)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
