from __future__ import annotations

import json
from collections import Counter, namedtuple
from pathlib import Path

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors import safe_open
from support.checkpoints import tiny_checkpoint
from tokenizers import Tokenizer

from sala_export.checkpoint import random_checkpoint
from sala_export.checkpoint.config import Mixer, SalaConfig
from sala_export.checkpoint.keymap import weights
from sala_export.checkpoint.presets import PRESETS, preset
from sala_export.checkpoint.random_checkpoint import write_random_checkpoint
from sala_export.checkpoint.random_weights import OUTLIER_VALUE, RandomWeights
from sala_export.checkpoint.reader import Checkpoint
from sala_export.checkpoint.synthetic_tokenizer import build_tokenizer
from sala_export.errors import RequestError
from sala_export.model.sala import SalaForCausalLM
from sala_export.staging import MARKER

TINY_FILES = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
    *(f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)),
    MARKER,
}


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_layout_is_that_of_the_hub() -> None:
    directory = tiny_checkpoint()
    assert {path.name for path in directory.iterdir()} == TINY_FILES
    index = json.loads((directory / "model.safetensors.index.json").read_text(encoding="utf-8"))
    stored: dict[str, str] = {}
    for shard in directory.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            stored |= dict.fromkeys(file.keys(), shard.name)
    checkpoint = Checkpoint.open(directory)
    assert index == {"metadata": {"total_size": checkpoint.weight_bytes()}, "weight_map": stored}
    assert checkpoint.config == PRESETS["tiny"].config


def test_seed_decides_every_byte(tmp_path: Path) -> None:
    for name, seed in (("same", 0), ("other", 1)):
        write_random_checkpoint(tmp_path / name, "tiny", seed=seed)
    assert contents(tmp_path / "same") == contents(tiny_checkpoint())
    expected, other = Checkpoint.open(tiny_checkpoint()), Checkpoint.open(tmp_path / "other")
    for name in expected.locations:
        assert not torch.equal(expected.tensor(name), other.tensor(name))


def test_tensors_do_not_depend_on_the_number_of_layers() -> None:
    whole, short = Checkpoint.open(tiny_checkpoint()), Checkpoint.open(tiny_checkpoint(layers=2))
    assert short.config.mixer_types == (Mixer.SPARSE, Mixer.LIGHTNING)
    assert short.config.residual_depth == 2
    assert set(short.locations) < set(whole.locations)
    for name in short.locations:
        assert torch.equal(short.tensor(name), whole.tensor(name))


def test_no_two_tensors_are_alike() -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint())
    starts = Counter(bytes(checkpoint.tensor(n).flatten()[:32].view(torch.uint8)) for n in checkpoint.locations)
    assert set(starts.values()) == {1}


def test_elements_are_normal_without_repetition_between_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = next(w for w in weights(PRESETS["tiny"].config) if w.role == "gate_proj")
    random = RandomWeights(PRESETS["tiny"].config, seed=3)
    monkeypatch.setattr("sala_export.checkpoint.random_weights._BLOCK_ELEMENTS", 100 * 256)
    blocks = [torch.from_numpy(block).view(torch.bfloat16).double() for block in random.blocks(weight)]
    assert [len(block) for block in blocks] == [100] * 5 + [12]
    values = torch.cat(blocks).flatten() / random.distribution(weight).std
    # Standard errors of the mean, the deviation and the fourth moment of 131072 draws: 0.003, 0.002, 0.027.
    assert abs(values.mean()) < 0.015
    assert abs(values.std() - 1) < 0.01
    assert abs(values.pow(4).mean() - 3) < 0.14
    assert values.abs().max() > 3.9
    half = values.numel() // 2
    assert abs(torch.corrcoef(torch.stack((values[:half], values[half:])))[0, 1]) < 0.02


@pytest.mark.parametrize("tokens", [96, 600])
def test_logits_and_residual_stream_look_trained(tokens: int) -> None:
    model = SalaForCausalLM.from_pretrained(tiny_checkpoint(), dtype=torch.float32)
    residual: list[torch.Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda _, inputs: residual.append(inputs[0][0]))
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(tokens))
    logits = model(ids)[0]
    assert 2 < logits.std() < 4
    assert logits.mean(0).std() < logits.std() / 2, "logits should depend on the tokens, not only on the vocabulary"
    channels = residual[0].square().mean(0).sqrt()
    outliers = (channels > 8 * channels.median()).nonzero().flatten().tolist()
    assert outliers == list(RandomWeights(model.config, seed=0).outlier_channels)
    assert len(outliers) == 2
    assert all(OUTLIER_VALUE / 2 < channels[i] < OUTLIER_VALUE * 2 for i in outliers)


def test_9b_preset_has_the_published_dimensions() -> None:
    config = PRESETS["9b"].config
    published = {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "intermediate_size": 16384,
        "vocab_size": 73448,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "dim_model_base": 256,
        "max_position_embeddings": 524288,
        "eos_token_id": [2, 73440],
    }
    assert published.items() <= config.to_dict().items()
    sparse = [layer for layer, mixer in enumerate(config.mixer_types) if mixer is Mixer.SPARSE]
    assert sparse == [0, 9, 16, 17, 22, 29, 30, 31]
    tensors = random_checkpoint._tensors(config, RandomWeights(config, 0), None)
    sizes = [sum(tensor.bytes for tensor in shard) for shard in random_checkpoint._cut(tensors, 5 * 10**9)]
    assert len(sizes) == 4
    assert max(sizes) <= 5 * 10**9
    assert sum(sizes) == 2 * 9_477_203_968


def test_shorter_preset_is_a_model_of_its_own() -> None:
    config = preset("9b", 4).config
    assert config.num_hidden_layers == config.residual_depth == 4
    assert SalaConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("name", "layers", "message"),
    [
        ("big", None, "preset 'big' is unknown: choose one of tiny, 9b"),
        ("tiny", 6, "layers is 6, but the model has 5: ask for 1 to that many"),
        ("tiny", 0, "layers is 0, but the model has 5: ask for 1 to that many"),
    ],
)
def test_unknown_preset_and_layers_are_refused(tmp_path: Path, name: str, layers: int | None, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        write_random_checkpoint(tmp_path / "out", name, layers=layers)
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


def test_taken_path_is_refused_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(RequestError, match="exists"):
        write_random_checkpoint(path, "tiny", layers=1)
    assert [p.name for p in path.iterdir()] == ["old"]
    with pytest.raises(RequestError, match="--force only replaces what this command wrote"):
        write_random_checkpoint(path, "tiny", layers=1, force=True)
    (path / MARKER).touch()
    write_random_checkpoint(path, "tiny", layers=1, force=True)
    assert not (path / "old").exists()
    assert Checkpoint.open(path).config.num_hidden_layers == 1


def test_full_disk_is_refused_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**12, 10**12 - 10**9, 10**9))
    with pytest.raises(RequestError, match=r"not enough disk for the weights: 17.65 GiB needed, 953.67 MiB free"):
        write_random_checkpoint(tmp_path / "out", "9b")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(phase: str, done: int, total: int, unit: str = "steps") -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_random_checkpoint(tmp_path / "out", "tiny", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int, str]] = []
    write_random_checkpoint(tmp_path / "out", "tiny", progress=lambda *call: calls.append(call))
    total = Checkpoint.open(tmp_path / "out").weight_bytes()
    assert calls[-1] == ("random weights", total, total, "bytes")
    assert [call[1] for call in calls] == sorted({call[1] for call in calls})


@pytest.mark.parametrize("vocab_size", [267, 512, 5000, 73448])
def test_tokenizer_fills_the_vocabulary_and_round_trips(vocab_size: int) -> None:
    tokenizer = Tokenizer.from_str(build_tokenizer(vocab_size).to_str())
    assert tokenizer.get_vocab_size() == vocab_size
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocab_size))
    for text in ("Benefit: a tale of two cities.", "  línea\n\t日本語 🙂", ""):
        encoded = tokenizer.encode(text)
        assert encoded.ids[0] == 1
        assert max(encoded.ids) < vocab_size
        assert tokenizer.decode(encoded.ids) == text
    assert [tokenizer.token_to_id(t) for t in ("<s>", "</s>", "<|im_end|>")] == [1, 2, vocab_size - 8]


def test_larger_vocabulary_makes_fewer_tokens() -> None:
    text = "banana potato tomato"
    counts = [len(build_tokenizer(size).encode(text).ids) for size in (267, 512, 73448)]
    assert counts == [21, 10, 7]


def test_chat_template_and_token_ids_agree_with_the_tokenizer() -> None:
    directory = tiny_checkpoint()
    fields = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    generation = json.loads((directory / "generation_config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(fields["chat_template"])
    text = template.render(
        messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho\n"}],
        bos_token=fields["bos_token"],
        add_generation_prompt=True,
    )
    assert text == "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo\n<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert [tokenizer.id_to_token(i) for i in ids].count("<|im_start|>") == 3
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert generation["bos_token_id"] == tokenizer.token_to_id(fields["bos_token"])
    assert generation["pad_token_id"] == tokenizer.token_to_id(fields["pad_token"])
    assert generation["eos_token_id"] == [tokenizer.token_to_id(t) for t in ("</s>", fields["eos_token"])]
