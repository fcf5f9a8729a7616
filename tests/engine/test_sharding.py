"""Into which shards a model is cut."""

from __future__ import annotations

import itertools
import random

import pytest

from sala_export.engine.sharding import ShardRange, choose_shards, equal_shards, host_bytes_needed, least_host_bytes
from sala_export.errors import RequestError

GIB = 1 << 30


def layers_of(shards: tuple[ShardRange, ...]) -> list[int]:
    return [layer for shard in shards for layer in range(shard.first_layer, shard.last_layer + 1)]


@pytest.mark.parametrize("seed", range(20))
def test_largest_shard_is_as_small_as_any_cut_makes_it(seed: int) -> None:
    chance = random.Random(seed)
    sizes = [chance.randint(1, 30) for _ in range(chance.randint(1, 9))]
    for count in range(1, len(sizes) + 1):
        shards = equal_shards(sizes, count)
        assert len(shards) == count
        assert layers_of(shards) == list(range(len(sizes)))
        assert [shard.weights_bytes for shard in shards] == [
            sum(sizes[shard.first_layer : shard.last_layer + 1]) for shard in shards
        ]
        cuts = itertools.combinations(range(1, len(sizes)), count - 1)
        best = min(
            max(sum(sizes[start:stop]) for start, stop in itertools.pairwise([0, *cut, len(sizes)])) for cut in cuts
        )
        assert max(shard.weights_bytes for shard in shards) == best


@pytest.mark.parametrize("seed", range(20))
def test_fewest_shards_that_fit_are_chosen(seed: int) -> None:
    chance = random.Random(seed)
    sizes = [chance.randint(1, 30) * 10**8 for _ in range(8)]
    budget = host_bytes_needed(chance.randint(max(sizes), sum(sizes)))
    shards = choose_shards(sizes, budget)
    assert all(host_bytes_needed(shard.weights_bytes) <= budget for shard in shards)
    if len(shards) > 1:
        fewer = equal_shards(sizes, len(shards) - 1)
        assert host_bytes_needed(max(shard.weights_bytes for shard in fewer)) > budget


def test_9b_on_a_machine_of_24_gib_is_cut_into_four() -> None:
    """Sparse layers have 253.7M weights, lightning layers 285.2M, embedding and lm_head 300.8M each; bf16."""
    sparse = {0, 9, 16, 17, 22, 29, 30, 31}
    sizes = [2 * (253_755_392 if layer in sparse else 285_225_216) for layer in range(32)]
    sizes[0] += 2 * 300_843_008
    sizes[-1] += 2 * 300_843_008
    shards = choose_shards(sizes, 15 * GIB)
    assert len(shards) == 4
    assert max(shard.weights_bytes for shard in shards) < 1.15 * min(shard.weights_bytes for shard in shards)


def test_machine_too_small_for_one_layer_is_told_the_numbers() -> None:
    with pytest.raises(
        RequestError,
        match=r"building layer 1 alone, 2\.00 GiB of weights, takes about 6\.70 GiB of memory, 6\.00 GiB may be used: ",
    ):
        choose_shards([GIB, 2 * GIB, GIB], 6 * GIB)


@pytest.mark.parametrize("count", [0, -1, 4])
def test_impossible_number_of_shards_is_refused(count: int) -> None:
    with pytest.raises(RequestError, match=rf"--shards {count}: expected 1 to 3"):
        equal_shards([1, 1, 1], count)


def test_mapped_files_are_what_can_be_dropped() -> None:
    assert host_bytes_needed(GIB) - least_host_bytes(GIB) == pytest.approx(GIB, abs=1024)
