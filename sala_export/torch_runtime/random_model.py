"""Makes models of published size without a checkpoint. Their weights are drawn on the device that runs them.

The distributions are those of `checkpoint.random_weights`, tensor by tensor. The numbers differ from those that
`sala-export random-checkpoint` writes, and depend on the device.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoint.config import SalaConfig
from ..checkpoint.keymap import Weight
from ..checkpoint.presets import preset
from ..checkpoint.random_weights import RandomWeights
from ..specs import Precision

_SEED_BITS = 64


class RandomOnDevice:
    """Draws each weight where it will lie, so that the host never holds one. A `WeightSource`."""

    def __init__(self, config: SalaConfig, seed: int) -> None:
        self.config = config
        self._random = RandomWeights(config, seed)

    def fill(self, weight: Weight, out: Tensor) -> None:
        """Draw a weight. A seed gives the same numbers on the same device, however many layers the model has."""
        distribution = self._random.distribution(weight)
        generator = torch.Generator(out.device).manual_seed(self._random.entropy(weight) % 2**_SEED_BITS)
        out.normal_(distribution.mean, distribution.std, generator=generator)
        for column, mean, std in distribution.own_columns():
            out[..., column].normal_(mean, std, generator=generator)


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomModel:
    """A model with random weights, which `load_random` makes. `ModelSource` is its counterpart on a disk."""

    preset: str
    config: SalaConfig
    seed: int
    precision: Precision
    device: torch.device

    @classmethod
    def of_preset(
        cls, name: str, layers: int | None, *, seed: int, precision: Precision, device: torch.device
    ) -> RandomModel:
        """Args: `layers`: take only this many layers from the start. None takes all.

        Raises: RequestError if the preset is unknown or shorter.
        """
        return cls(preset=name, config=preset(name, layers).config, seed=seed, precision=precision, device=device)

    @property
    def name(self) -> str:
        return f"random {self.preset} of {self.config.num_hidden_layers} layers"

    def weights(self) -> RandomOnDevice:
        return RandomOnDevice(self.config, self.seed)

    def inv_freq(self) -> list[float]:
        return list(self.config.inverse_frequencies())

    def fingerprint(self) -> str:
        """Hash that is equal for equal weights only. It includes the device, as devices draw different numbers."""
        told = {
            "preset": self.preset,
            "layers": self.config.num_hidden_layers,
            "seed": self.seed,
            "precision": self.precision,
            "torch": torch.__version__,
            "device": _name_of(self.device),
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"
