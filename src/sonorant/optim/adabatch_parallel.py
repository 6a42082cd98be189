"""AdaBatch with several workers that step together, over `torch.distributed`.

Source: AdaBatch (arXiv 1711.01761), the synchronous parallel method: each worker has a share of the
batch, and sums and counts are added over all of them before the step. Only touched coordinates
travel. All workers keep the same weights, and the result does not depend on how many there are,
except for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from sonorant.errors import ConfigError
from sonorant.optim.sample_sums import SampleSums

_STOPPED = -1  # in place of a number of entries


class ProcessExchange:
    """The exchange of `AdaBatch` over a process group, such as `gloo` on processors.

    group: all processes if not given; `torch.distributed.init_process_group` comes first.
    A worker without a gradient for a parameter takes part with no samples.
    Raises: ConfigError at a step in all workers, if one of them stops with an error of its own.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise ConfigError(
                "there is no process group: call torch.distributed.init_process_group first"
            )
        self._group = group
        self._workers = dist.get_world_size(group)

    def gather(
        self, parameters: Sequence[Tensor], parts: Sequence[tuple[int, SampleSums] | None]
    ) -> list[tuple[int, SampleSums] | None]:
        """The sums of all workers, those of worker 0 first."""
        plans = torch.tensor(
            [(0, 0) if part is None else (part[0] + 1, len(part[1].counts)) for part in parts]
        )
        everyones = torch.stack(self._gathered(plans)).tolist()  # [workers, parameters, 2]
        if (stopped := self._stopped(everyones)) is not None:
            raise ConfigError(f"worker {stopped} stopped with an error; no parameter was changed")
        found: list[tuple[int, SampleSums] | None] = []
        for index, parameter in enumerate(parameters):
            sparse_dims = max(plan[index][0] for plan in everyones) - 1
            lengths = [plan[index][1] for plan in everyones]
            part = parts[index]
            if sparse_dims < 0:
                found.append(None)
            else:
                sums = _empty(parameter, sparse_dims) if part is None else part[1]
                found.append((sparse_dims, self._all_sums(sums, lengths)))
        return found

    def abandon(self, parameters: Sequence[Tensor]) -> None:
        """Tell the others that this worker stops."""
        self._gathered(torch.full((len(parameters), 2), _STOPPED))

    def _stopped(self, everyones: list[list[list[int]]]) -> int | None:
        stopped = (rank for rank, plan in enumerate(everyones) if plan[0][1] == _STOPPED)
        return next(stopped, None)

    def _all_sums(self, sums: SampleSums, lengths: list[int]) -> SampleSums:
        longest = max(lengths)
        columns = zip(*(self._padded(tensor, longest) for tensor in sums), strict=True)
        by_worker = [
            [tensor[:length] for tensor in worker]
            for worker, length in zip(columns, lengths, strict=True)
        ]
        return SampleSums(*(torch.cat(tensors) for tensors in zip(*by_worker, strict=True)))

    def _padded(self, tensor: Tensor, length: int) -> list[Tensor]:
        """That of each worker; all must be of one length to travel."""
        padded = tensor.new_zeros((length, *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        return self._gathered(padded)

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        everyones = [torch.empty_like(tensor) for _ in range(self._workers)]
        dist.all_gather(everyones, tensor, group=self._group)
        return everyones


def _empty(parameter: Tensor, sparse_dims: int) -> SampleSums:
    return SampleSums(
        torch.zeros(0, dtype=torch.int64, device=parameter.device),
        parameter.new_zeros((0, *parameter.shape[sparse_dims:])),
        torch.zeros(0, dtype=torch.int32, device=parameter.device),
    )
