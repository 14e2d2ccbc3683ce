"""The networks of this toolkit as TorchRL modules, for the extra [torchrl]; no other module imports this one.

A core, or a whole MPN-DQN, reads its state from keys of a TensorDict and writes the next one under "next", as
TorchRL's LSTMModule and GRUModule do, so it works with TorchRL's collectors, replay buffers and losses.
`docs/torchrl.md` trains one on CartPole-v1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpn_rl.contracts import Core, map_state, state_parts
from mpn_rl.networks.encoder import AgentNetwork
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

    One step starts from `init_state` where is_init is true, and stores that state with the step. After
    `torchrl.modules.set_recurrent_mode(True)` the module takes sequences. A sequence starts from the state stored with
    its first step. Wherever is_init is true (at the start of an episode, or of a `SliceSampler`'s slice), it continues
    from the state stored with that step. It writes no state. Without stored states, both start from `init_state`; only
    then does a trained M(0) receive gradients.

    Steps under "next" have no is_init, so a loss that unrolls them, as TorchRL's DQNLoss does, needs rows (B, T)
    that each lie within one episode.

    Args:
        network: any core, with K = H; or an `MPNDQN`, with K actions.
        in_key: key of the input.
        out_key: key of the result.
        state_key: the state's tensors are stored as `<state_key>_M`, or with the other names of `state_arrays`.
    """

    def __init__(
        self,
        network: Core | AgentNetwork,
        in_key: str = "observation",
        out_key: str = "hidden",
        state_key: str = "state",
    ) -> None:
        super().__init__()
        self.network = network
        state = network.init_state(1)
        names = network.state_arrays(state)
        # The shape of a row of each part, by its key; empty for a core without memory, whose state has no names.
        self._parts = {f"{state_key}_{n}": part.shape[1:] for n, part in zip(names, state_parts(state), strict=False)}
        self.in_keys = [in_key, *self._parts, "is_init"]
        self.out_keys = [out_key, *(("next", key) for key in self._parts)]

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that adds the state's keys to an environment: append it after `InitTracker`."""
        return TensorDictPrimer({key: Unbounded(shape=shape) for key, shape in self._parts.items()}, expand_specs=True)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self._sequence(tensordict) if recurrent_mode() else self._step(tensordict)

    def _step(self, td: TensorDictBase) -> TensorDictBase:
        x: Tensor = td.get(self.in_keys[0])
        rows = x.reshape(-1, x.shape[-1])
        state = self.network.init_state(len(rows), x.device)
        stored = self._stored(td, len(rows))
        if stored is not None:
            is_init, old = td.get("is_init").reshape(-1), iter(stored)
            state = map_state(lambda new: torch.where(is_init.view(-1, *[1] * (new.dim() - 1)), new, next(old)), state)
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
        is_init = td.get("is_init").reshape(-1, steps).clone()
        stored = self._stored(td, is_init.numel())
        if stored is None:
            out, _ = self.network.unroll(xs, self.network.init_state(len(xs), x.device), is_init)
        else:
            is_init[:, 0] = True
            out = self._pieces(xs, is_init, stored)
        return td.set(self.out_keys[0], out.reshape(*x.shape[:-1], out.shape[-1]))

    def _pieces(self, xs: Tensor, is_init: Tensor, stored: list[Tensor]) -> Tensor:
        """The rows (R, T, D), cut where `is_init` (R, T) is true; each piece is unrolled from its stored state."""
        starts = is_init.flatten().nonzero().squeeze(1)
        piece = is_init.flatten().cumsum(0) - 1  # the piece of each step, and below its place in the piece
        place = torch.arange(len(piece), device=xs.device) - starts[piece]
        padded = xs.new_zeros(len(starts), int(place.max()) + 1, xs.shape[-1])
        padded[piece, place] = xs.flatten(0, 1)
        parts = iter(stored)
        state = map_state(lambda _: next(parts)[starts], self.network.init_state(1, xs.device))
        return self.network.unroll(padded, state)[0][piece, place]

    def _stored(self, td: TensorDictBase, rows: int) -> list[Tensor] | None:
        """The state's tensors, (rows, ...) each; None if no state is stored."""
        parts = [td.get(key, None) for key in self._parts]
        if not parts or any(part is None for part in parts):
            return None
        return [part.reshape(rows, *shape) for part, shape in zip(parts, self._parts.values(), strict=True)]


def q_actor(network: AgentNetwork, action_spec: TensorSpec, in_key: str = "observation") -> TensorDictSequential:
    """Q-values and greedy actions of an `MPNDQN`, for `EGreedyModule`, a collector and `DQNLoss`.

    It trains `network` itself, whose `state_dict` is the one in the toolkit's checkpoints.

    Args:
        network: an `MPNDQN`.
        action_spec: of the environment.
        in_key: key of the observation.
    """
    values = CoreModule(network, in_key, "action_value")
    return TensorDictSequential(values, QValueModule(spec=action_spec))
