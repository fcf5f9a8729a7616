"""Random weights drawn on a device: distributed as those that `random-checkpoint` writes, and nothing copied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import tiny_checkpoint
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sala_export.benchmark.gate import require_agreement
from sala_export.checkpoint.keymap import weights
from sala_export.checkpoint.presets import PRESETS
from sala_export.checkpoint.random_weights import SALIENT_NORM_WEIGHT, RandomWeights
from sala_export.checkpoint.reader import Checkpoint
from sala_export.errors import RequestError, StateError
from sala_export.specs import Precision
from sala_export.torch_runtime.load import TorchModel, load_random
from sala_export.torch_runtime.random_model import RandomModel, RandomOnDevice

TINY = PRESETS["tiny"].config
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny() -> TorchModel:
    return load_random("tiny", device="cpu")


def drawn(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    source = RandomOnDevice(TINY, seed)
    found = {weight.name: torch.empty(weight.shape, dtype=dtype) for weight in weights(TINY)}
    for weight in weights(TINY):
        source.fill(weight, found[weight.name])
    return found


def require_same_spread(ours: Tensor, theirs: Tensor, what: object) -> None:
    """Mean and standard deviation within six standard errors."""
    count, std = ours.numel(), float(theirs.std())
    assert float(ours.std()) == pytest.approx(std, rel=6 / count**0.5), what
    assert float(ours.mean()) == pytest.approx(float(theirs.mean()), abs=9 * std / count**0.5), what


def test_every_tensor_is_distributed_as_a_written_checkpoint_has_it() -> None:
    """Beside the tensors of a file, channel by channel where channels differ."""
    ours, written = drawn(), Checkpoint.open(tiny_checkpoint())
    channels = RandomWeights(TINY, 0)
    special = sorted((*channels.outlier_channels, *channels.salient_channels))
    for weight in weights(TINY):
        mine, theirs = ours[weight.name], written.tensor(weight.name).float()
        if len(weight.shape) == 1:
            # One number for each channel, within 10 % or so of a mean that may be its own.
            torch.testing.assert_close(mine, theirs, rtol=1.2, atol=0.0)
            continue
        plain = torch.ones(weight.shape[-1], dtype=torch.bool)
        if weight.shape[-1] == TINY.hidden_size:
            plain[special] = False
            for channel in special:
                require_same_spread(mine[:, channel], theirs[:, channel], (weight.name, channel))
        require_same_spread(mine[:, plain], theirs[:, plain], weight.name)
    largest = ours["model.layers.1.input_layernorm.weight"].topk(len(channels.salient_channels))
    assert set(largest.indices.tolist()) == set(channels.salient_channels)
    assert float(largest.values.mean()) == pytest.approx(SALIENT_NORM_WEIGHT, rel=0.3)


def test_seed_alone_decides_and_a_shorter_model_has_the_same_tensors() -> None:
    first, again, other = drawn(), drawn(), drawn(seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    short = load_random("tiny", layers=2, device="cpu")
    for name, tensor in short.reference.model.named_parameters():
        assert torch.equal(tensor, first[name])
    assert short.source.config.num_hidden_layers == 2


class Storages(TorchDispatchMode):
    """Refuses every result that is not in one storage."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self._storage = out.untyped_storage().data_ptr()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        assert result.untyped_storage().data_ptr() == self._storage, f"{function} allocates"
        return result


def test_weights_are_drawn_where_they_lie() -> None:
    source = RandomOnDevice(TINY, 0)
    for weight in weights(TINY)[:8]:
        out = torch.empty(weight.shape, dtype=torch.bfloat16)
        with Storages(out):
            source.fill(weight, out)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_model_agrees_with_the_reference_on_the_same_weights(precision: str) -> None:
    model = load_random("tiny", device="cpu", precision=precision)
    assert model.precision == precision
    agreement = require_agreement(model, model.source)
    assert agreement.error < agreement.bound


def test_logits_are_sized_like_those_of_a_trained_model(tiny: TorchModel) -> None:
    logits = tiny.session(max_context=300).prefill(np.random.default_rng(0).integers(0, 512, 300, dtype=np.int32))
    assert 1.5 < logits.std() < 6.0
    assert tiny.tokenizer is None


def test_state_of_other_weights_is_refused(tiny: TorchModel, tmp_path: Path) -> None:
    session = tiny.session(max_context=64)
    session.prefill([1, 2, 3])
    session.save(tmp_path / "a.state")
    assert load_random("tiny", device="cpu").restore(tmp_path / "a.state", max_context=64).position == 3
    with pytest.raises(StateError):
        load_random("tiny", device="cpu", seed=1).restore(tmp_path / "a.state", max_context=64)


def test_fingerprint_tells_everything_that_makes_the_weights_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprint(name: str = "tiny", layers: int | None = None, seed: int = 0, kind: str = "fp32") -> str:
        model = RandomModel.of_preset(name, layers, seed=seed, precision=Precision(kind), device=CPU)
        return model.fingerprint()

    found = [fingerprint(), fingerprint("9b"), fingerprint(layers=4), fingerprint(seed=1), fingerprint(kind="bf16")]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")
    found.append(fingerprint())
    assert len(set(found)) == len(found)
    assert fingerprint() == fingerprint(layers=5), "all layers, however asked for"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("10b", {}, "preset '10b' is unknown"),
        ("tiny", {"layers": 6}, "layers is 6, but the model has 5"),
        ("tiny", {"precision": "fp8"}, "precision fp8 is unknown: the torch runtime runs"),
    ],
)
def test_wrong_option_is_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load_random(name, device="cpu", **options)  # type: ignore[arg-type]
