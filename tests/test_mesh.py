import dataclasses
import re

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason.model.decoder import abstract_params
from tests.tiny_model import CONFIG


def abstract_mesh(**shape):
    """A mesh of any size, without devices."""
    sizes = {"data": 1, "fsdp": 1, "tensor": 1} | shape
    return AbstractMesh(
        tuple(sizes.values()), mesh_lib.AXES, axis_types=(AxisType.Auto,) * len(sizes)
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rank", [0, 3])
def test_every_parameter_matches_exactly_one_rule_and_every_rule_a_parameter(tied, rank):
    params = abstract_params(
        dataclasses.replace(CONFIG, tie_word_embeddings=tied, lora_rank=rank, lora_alpha=rank)
    )
    leaves = jax.tree_util.tree_leaves_with_path(params)
    used = set()
    for path, leaf in leaves:
        name = mesh_lib.path_name(path)
        rules = [p for p, _ in mesh_lib.PARAM_RULES if re.fullmatch(p, name)]
        assert len(rules) == 1, name
        assert len(mesh_lib.param_spec(name)) <= leaf.ndim, name
        used.update(rules)
    unused = {pattern for pattern, _ in mesh_lib.PARAM_RULES} - used
    adapters = {pattern for pattern, _ in mesh_lib.PARAM_RULES if "lora" in pattern}
    assert len(adapters) == 4
    assert unused == ({"lm_head/kernel"} if tied else set()) | (set() if rank else adapters)


def test_an_adapter_is_sharded_like_the_outer_axes_of_its_matrix():
    config = dataclasses.replace(CONFIG, lora_rank=3, lora_alpha=3)
    shardings = mesh_lib.param_shardings(abstract_mesh(fsdp=2, tensor=2), abstract_params(config))
    for module in (
        *shardings["layers"]["self_attn"].values(),
        *shardings["layers"]["mlp"].values(),
    ):
        _, rows, columns = module["kernel"].spec
        assert module["lora_a"].spec == P(None, rows, None)
        assert module["lora_b"].spec == P(None, None, columns)


def test_a_parameter_without_a_rule_is_named():
    with pytest.raises(ValueError, match="layers/mlp/gate/kernel: 0 sharding rules"):
        mesh_lib.param_spec("layers/mlp/gate/kernel")
    with pytest.raises(ValueError, match="my/norm/scale"):  # the whole path has to match
        mesh_lib.param_spec("my/norm/scale")


def test_an_ambiguous_rule_is_refused(monkeypatch):
    monkeypatch.setattr(mesh_lib, "PARAM_RULES", (*mesh_lib.PARAM_RULES, mesh_lib.PARAM_RULES[0]))
    with pytest.raises(ValueError, match="embed_tokens: 2 sharding rules"):
        mesh_lib.param_spec("embed_tokens")


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ({"tensor": 3}, r"tensor=3 does not divide embed_tokens of shape \(32, 16\)"),
        ({"fsdp": 5}, r"fsdp=5 does not divide embed_tokens of shape \(32, 16\)"),
        # 16 divides vocabulary (32) and hidden size (16), but not the 2·4 outputs of the keys
        ({"tensor": 16}, r"tensor=16 does not divide layers/.*"),
    ],
)
def test_a_dimension_that_does_not_divide_is_named(shape, named):
    with pytest.raises(ValueError, match=named):
        mesh_lib.param_shardings(abstract_mesh(**shape), abstract_params(CONFIG))


def test_sizes_that_divide():
    shardings = mesh_lib.param_shardings(
        abstract_mesh(data=3, fsdp=2, tensor=2), abstract_params(CONFIG)
    )
    assert shardings["embed_tokens"].spec == P("tensor", "fsdp")
    assert shardings["norm"]["scale"].spec == P()


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ({"data": -1, "fsdp": -1}, "at most one is -1"),
        ({"data": 0}, "'data': 0"),
        ({"tensor": -2}, "'tensor': -2"),
        ({"data": 2}, "does not fit 1 devices"),
        ({"fsdp": 2}, "does not fit 1 devices"),
    ],
)
def test_what_make_mesh_refuses(shape, named):
    with pytest.raises(ValueError, match=named):
        mesh_lib.make_mesh(**shape, devices=jax.devices()[:1])


def test_the_free_axis_takes_what_remains():
    mesh = mesh_lib.make_mesh(data=1, fsdp=-1, devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert mesh_lib.batch_parts(mesh) == 1


def test_put_and_fetch_give_back_the_arrays():
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    batch = {"a": np.arange(6).reshape(3, 2), "b": np.array([True, False, True])}
    jax.tree.map(
        np.testing.assert_array_equal, mesh_lib.fetch(mesh_lib.put_batch(mesh, batch)), batch
    )


def test_distributed_settings_that_are_missing_are_named(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES is not"):
        mesh_lib.start_distributed()
