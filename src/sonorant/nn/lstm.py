"""LSTM over time with a skip connection, the same offline and live.

Source: EnCodec (arXiv 2210.13438, section 3.2): two layers follow the convolutions, with the input
added to the output.
"""

from __future__ import annotations

from torch import Tensor, nn

from sonorant.nn.state import State, StreamingModule


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
        else:
            slot = state[self]
            before = (
                slot.hidden.transpose(0, 1).contiguous(),
                slot.cell.transpose(0, 1).contiguous(),
            )
            y, (hidden, cell) = self.lstm(steps, before)
            state.update(slot.hidden, hidden.transpose(0, 1))
            state.update(slot.cell, cell.transpose(0, 1))
        return x + y.transpose(1, 2)
