"""Whether meshes of eight virtual devices give the update of a single one. Started by test_learner.py."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from jaxrl_reason import mesh as mesh_lib
from tests import tiny_model

MESHES = (
    {"data": 8},
    {"data": 1, "fsdp": 8},
    {"data": 2, "fsdp": 2, "tensor": 2},
)


def params_after(mesh, micro_batch_size):
    start, update = tiny_model.make_learner(mesh)
    batch = tiny_model.make_batch("sequence_mean")
    state, metrics = tiny_model.step(mesh, update, start(), batch, micro_batch_size)
    return mesh_lib.fetch(state.params), metrics


def main():
    expected, metrics = params_after(mesh_lib.make_mesh(devices=jax.devices()[:1]), 8)
    for shape in MESHES:
        got, own = params_after(mesh_lib.make_mesh(**shape), 8)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)
        for name, pair in metrics.items():
            np.testing.assert_allclose(own[name], pair, rtol=1e-4, atol=1e-5, err_msg=name)
    print("equal")


if __name__ == "__main__":
    main()
