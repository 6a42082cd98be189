"""LSTM over time with a skip connection, the same offline and live.

Source: EnCodec (arXiv 2210.13438, section 3.2): two layers follow the convolutions, with the input
added to the output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.nn.state import State, StreamingModule

# The built-in layer rearranges all weights at every call, which for this many steps costs more than
# the steps themselves.
FEW_STEPS = 16


class SkipLSTM(StreamingModule):
    """`x + lstm(x)` along time.

    Shape: x [batch, channels, time] -> the same.
    State: `hidden` and `cell`, each [batch, layers, channels]. Latency: none.
    """

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, layers, batch_first=True)

    def fresh_state(self, batch_size: int) -> dict[str, Tensor]:
        shape = (batch_size, self.lstm.num_layers, self.lstm.hidden_size)
        like = next(self.lstm.parameters())
        return {"hidden": like.new_zeros(shape), "cell": like.new_zeros(shape)}

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        steps = x.transpose(1, 2)
        if state is None:
            y, _ = self.lstm(steps)
            return x + y.transpose(1, 2)
        slot = state[self]
        if steps.shape[1] <= FEW_STEPS and x.device.type == "cpu" and not torch.is_grad_enabled():
            y, hidden, cell = self._few_steps(steps, slot.hidden, slot.cell)
        else:
            before = (
                slot.hidden.transpose(0, 1).contiguous(),
                slot.cell.transpose(0, 1).contiguous(),
            )
            y, (hidden, cell) = self.lstm(steps, before)
            hidden, cell = hidden.transpose(0, 1), cell.transpose(0, 1)
        state.update(slot.hidden, hidden)
        state.update(slot.cell, cell)
        return x + y.transpose(1, 2)

    def _few_steps(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same recursion step by step.

        Shapes: x [batch, steps, channels], hidden and cell [batch, layers, channels].
        """
        last_hidden, last_cell = [], []
        for layer, (input_weight, weight, input_bias, bias) in enumerate(self.lstm.all_weights):
            h, c = hidden[:, layer], cell[:, layer]
            gates = F.linear(x, input_weight, input_bias + bias)
            outputs = []
            for step in gates.unbind(1):
                i, f, g, o = torch.addmm(step, h, weight.t()).chunk(4, dim=-1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                outputs.append(h)
            x = torch.stack(outputs, dim=1)
            last_hidden.append(h)
            last_cell.append(c)
        return x, torch.stack(last_hidden, dim=1), torch.stack(last_cell, dim=1)
