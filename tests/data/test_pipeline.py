import json
from collections import Counter

import numpy as np
import pytest

from jaxrl_reason.data.pipeline import ProblemStream, rollout_key
from jaxrl_reason.data.tasks import Arithmetic, Problem

SOURCE = [Problem(f"p{i}", f"{i}?", str(i)) for i in range(10)]


def draw(stream, batches):
    """Ids and keys of the next batches, flat."""
    drawn = [next(stream) for _ in range(batches)]
    ids = [p.id for problems, _ in drawn for p in problems]
    return ids, np.concatenate([keys for _, keys in drawn]).tolist()


def test_every_epoch_is_a_permutation_and_no_two_are_alike():
    ids, keys = draw(ProblemStream(SOURCE, 5, seed=0), 8)
    epochs = [ids[i : i + 10] for i in range(0, 40, 10)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(p.id for p in SOURCE)
    assert len(set(map(tuple, epochs))) == 4
    assert len(set(keys)) == 40  # the same problem is sampled differently in another epoch
    assert keys == [rollout_key(name, i // 10) for i, name in enumerate(ids)]


def test_batches_may_straddle_epochs():
    ids, keys = draw(ProblemStream(SOURCE, 4, seed=0), 5)
    assert Counter(ids) == {p.id: 2 for p in SOURCE}
    assert (ids, keys) == draw(ProblemStream(SOURCE, 5, seed=0), 4)  # the batch size cuts, no more


def test_the_seed_decides_the_order():
    first, _ = draw(ProblemStream(SOURCE, 10, seed=0), 2)
    assert first == draw(ProblemStream(SOURCE, 10, seed=0), 2)[0]
    assert first != draw(ProblemStream(SOURCE, 10, seed=1), 2)[0]


@pytest.mark.parametrize("before", [0, 1, 2, 3, 7])
def test_a_restored_stream_continues_at_the_next_problem(before):
    stream = ProblemStream(SOURCE, 3, seed=0)
    if before:
        draw(stream, before)
    state = json.loads(json.dumps(stream.state()))
    expected = draw(stream, 6)
    restored = ProblemStream(SOURCE, 3, seed=0)
    draw(restored, 2)  # restoring also undoes what was drawn
    restored.restore(state)
    assert draw(restored, 6) == expected


def test_a_changed_source_is_refused():
    state = ProblemStream(SOURCE, 3, seed=0).state()
    with pytest.raises(ValueError, match="data.source: .* 10 problems, .* now there is 9 problems"):
        ProblemStream(SOURCE[:9], 3, seed=0).restore(state)


def test_a_procedural_source_is_never_listed():
    ids, _ = draw(ProblemStream(Arithmetic("train"), 16, seed=0), 2)
    assert len(set(ids)) == 32


def test_keys_are_those_of_every_run():
    # CRC-32 of "0/p1" and "1/p1"
    assert (rollout_key("p1"), rollout_key("p1", 1)) == (2627690412, 606288073)
