"""The networks of this toolkit as TorchRL modules: the extra [torchrl]; nothing else imports this file.

A core, or a whole MPN-DQN, reads its state from keys of a TensorDict and writes the next one under "next", as
TorchRL's own LSTMModule and GRUModule do, so that TorchRL's collectors, replay buffers and losses take it as it is.
`docs/torchrl.md` trains one on CartPole-v1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mpn_rl.contracts import map_state, state_parts
from mpn_rl.options import ConfigError

try:
    from tensordict import TensorDictBase
    from tensordict.nn import TensorDictModuleBase, TensorDictSequential
    from torchrl.data import TensorSpec, Unbounded
    from torchrl.envs import TensorDictPrimer
    from torchrl.modules import QValueModule
    from torchrl.modules.tensordict_module.rnn import recurrent_mode
except ModuleNotFoundError as error:
    raise ConfigError(
        f"torchrl_modules needs TorchRL, and {error.name} is missing: pip install 'mpn-rl[torchrl]'"
    ) from None


class CoreModule(TensorDictModuleBase):
    """A network with the core contract behind TensorDict keys.

        one step   td (*B)      in_key (*B, D), state, is_init (*B, 1)        -> out_key (*B, K), ("next", state)
        sequence   td (*B, T)   in_key (*B, T, D), state, is_init (*B, T, 1)  -> out_key (*B, T, K)

    One step begins from `init_state` where is_init is true, and writes that back. A sequence, which is what
    `torchrl.modules.set_recurrent_mode(True)` asks for, begins from the state stored with its first step, and again
    from the stored one wherever is_init is true: at an episode's start, or where a `SliceSampler` marks a slice's. It
    writes no state. Where no state is stored, both begin from `init_state`, which then alone carries gradients to a
    trained M(0).

    Steps under "next" carry no such marks, so a loss that unrolls them, as TorchRL's DQNLoss does, needs rows (B, T)
    that each lie within one episode.

    Args:
        network: what has `init_state(batch_size, device)` and `unroll(xs, state, reset)`: any core, K = H; or an
            `MPNDQN`, K = actions.
        in_key, out_key: of the input and of the result.
        state_key: the state's tensors are stored as `<state_key>_M`, or with the other names of `state_arrays`.
    """

    def __init__(
        self, network: Any, in_key: str = "observation", out_key: str = "hidden", state_key: str = "state"
    ) -> None:
        super().__init__()
        self.network = network
        state = network.init_state(1)
        names = getattr(network, "core", network).state_arrays(state)
        # The shape of each part's row, by its key; none for a core without memory, whose state names nothing.
        self._parts = {f"{state_key}_{n}": part.shape[1:] for n, part in zip(names, state_parts(state), strict=False)}
        self.in_keys = [in_key, *self._parts, "is_init"]
        self.out_keys = [out_key, *(("next", key) for key in self._parts)]

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that tells an environment of the state's keys: append it after `InitTracker`."""
        return TensorDictPrimer({key: Unbounded(shape=shape) for key, shape in self._parts.items()}, expand_specs=True)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self._sequence(tensordict) if recurrent_mode() else self._step(tensordict)

    def _step(self, td: TensorDictBase) -> TensorDictBase:
        x: Tensor = td.get(self.in_keys[0])
        rows = x.reshape(-1, x.shape[-1])
        state = self.network.init_state(len(rows), x.device)
        stored = self._stored(td, len(rows))
        if stored is not None:
            fresh, old = td.get("is_init").reshape(-1), iter(stored)
            state = map_state(lambda new: _where(fresh, new, next(old)), state)
        for key, part in zip(self._parts, state_parts(state), strict=False):
            td.set(key, part.reshape(*x.shape[:-1], *part.shape[1:]))
        out, state = self.network.unroll(rows.unsqueeze(1), state)
        for key, part in zip(self._parts, state_parts(state), strict=False):
            td.set(("next", key), part.reshape(*x.shape[:-1], *part.shape[1:]))
        return td.set(self.out_keys[0], out.reshape(*x.shape[:-1], out.shape[-1]))

    def _sequence(self, td: TensorDictBase) -> TensorDictBase:
        x: Tensor = td.get(self.in_keys[0])
        steps = x.shape[-2]
        xs = x.reshape(-1, steps, x.shape[-1])
        begins = td.get("is_init").reshape(-1, steps).clone()
        stored = self._stored(td, begins.numel())
        if stored is None:
            out, _ = self.network.unroll(xs, self.network.init_state(len(xs), x.device), begins)
        else:
            begins[:, 0] = True
            out = self._pieces(xs, begins, stored)
        return td.set(self.out_keys[0], out.reshape(*x.shape[:-1], out.shape[-1]))

    def _pieces(self, xs: Tensor, begins: Tensor, stored: list[Tensor]) -> Tensor:
        """The rows (R, T, D) cut where `begins` (R, T) is true, each piece unrolled from its stored state."""
        starts = begins.flatten().nonzero().squeeze(1)
        piece = begins.flatten().cumsum(0) - 1  # which piece a step belongs to, and its place there
        place = torch.arange(len(piece), device=xs.device) - starts[piece]
        padded = xs.new_zeros(len(starts), int(place.max()) + 1, xs.shape[-1])
        padded[piece, place] = xs.flatten(0, 1)
        parts = iter(stored)
        state = map_state(lambda _: next(parts)[starts], self.network.init_state(1, xs.device))
        return self.network.unroll(padded, state)[0][piece, place]

    def _stored(self, td: TensorDictBase, rows: int) -> list[Tensor] | None:
        """The state's tensors, (rows, ...) each, or None where there is none."""
        parts = [td.get(key, None) for key in self._parts]
        if not parts or any(part is None for part in parts):
            return None
        return [part.reshape(rows, *shape) for part, shape in zip(parts, self._parts.values(), strict=True)]


def _where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (old.dim() - 1)), new, old)


def q_actor(network: Any, action_spec: TensorSpec, in_key: str = "observation") -> TensorDictSequential:
    """Q-values and greedy actions of an `MPNDQN`, for `EGreedyModule`, a collector and `DQNLoss`.

    It trains the network that was passed in: its `state_dict` is the one that the toolkit's own checkpoints hold.
    """
    values = CoreModule(network, in_key, "action_value")
    return TensorDictSequential(values, QValueModule(spec=action_spec))
