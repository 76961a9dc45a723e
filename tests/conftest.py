"""Every test runs on the CPU. The pure packages have their jaxtyping annotations checked by beartype, and
their tests run with JAX's strict promotion rules (`strict_jax`)."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxtyping
import pytest

# before the first import of the package; types.py is left out, because jax builds its dataclasses with
# placeholders in the place of arrays
CHECKED = ("masked", "advantages", "rewards", "objectives", "selection", "diagnostics", "recipes")
jaxtyping.install_import_hook([f"jaxrl_reason.{name}" for name in CHECKED], "beartype.beartype")


@pytest.fixture
def strict_jax():
    """No implicit broadcasting over ranks and no implicit promotion of dtypes."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield
