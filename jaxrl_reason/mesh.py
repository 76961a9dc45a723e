"""The device mesh, the one table of parameter shardings, and transfers that also work on many hosts.

Axes: `data` replicates the parameters, `fsdp` shards them and the batch, `tensor` splits matrices.
The batch axis of every [B, …] array is sharded over (data, fsdp).
"""

import os
import re

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

# Parameter path -> spec. Matrices are [in, out]; those under layers/ carry a leading layer axis.
PARAM_RULES = (
    (r"embed_tokens", P("tensor", "fsdp")),
    (r"layers/self_attn/[qkv]_proj/kernel", P(None, "fsdp", "tensor")),
    (r"layers/self_attn/[qkv]_proj/bias", P(None, "tensor")),
    (r"layers/self_attn/o_proj/kernel", P(None, "tensor", "fsdp")),
    (r"layers/mlp/(gate|up)_proj/kernel", P(None, "fsdp", "tensor")),
    (r"layers/mlp/down_proj/kernel", P(None, "tensor", "fsdp")),
    (r"layers/(self_attn/[qkv]|mlp/(gate|up))_proj/lora_a", P(None, "fsdp", None)),
    (r"layers/(self_attn/[qkv]|mlp/(gate|up))_proj/lora_b", P(None, None, "tensor")),
    (r"layers/(self_attn/o|mlp/down)_proj/lora_a", P(None, "tensor", None)),
    (r"layers/(self_attn/o|mlp/down)_proj/lora_b", P(None, None, "fsdp")),
    (r"layers/(input|post_attention)_layernorm/scale", P()),
    (r"norm/scale", P()),
    (r"lm_head/kernel", P("fsdp", "tensor")),
)


def start_distributed() -> None:
    """Join the other processes, when there are any.

    With JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set (any cluster, or several
    processes on one machine) those are used; with JAXRL_REASON_DISTRIBUTED=1 (TPU pods, Slurm, GKE) jax
    finds them itself. Otherwise the run is a single process. Must run before the first use of a device.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address:
        missing = [k for k in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID") if k not in os.environ]
        if missing:
            raise ValueError(f"JAX_COORDINATOR_ADDRESS is set, but {', '.join(missing)} is not")
        jax.distributed.initialize(
            address, int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
        )
    elif os.environ.get("JAXRL_REASON_DISTRIBUTED") == "1":
        jax.distributed.initialize()


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """Mesh over all devices; one axis may be -1, "whatever remains"."""
    devices = jax.devices() if devices is None else devices
    shape = {"data": data, "fsdp": fsdp, "tensor": tensor}
    free = [name for name, size in shape.items() if size == -1]
    fixed = int(np.prod([size for size in shape.values() if size != -1]))
    if len(free) > 1 or any(size < 1 and size != -1 for size in shape.values()):
        raise ValueError(f"mesh: {shape}; sizes are at least 1, at most one is -1")
    if len(devices) % fixed or (not free and fixed != len(devices)):
        raise ValueError(f"mesh: {shape} does not fit {len(devices)} devices")
    if free:
        shape[free[0]] = len(devices) // fixed
    return jax.make_mesh(
        tuple(shape.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def path_name(path) -> str:
    """`layers/mlp/up_proj/kernel` of a key path."""
    return "/".join(str(getattr(entry, "key", entry)) for entry in path)


def param_spec(name: str) -> P:
    """The spec of a parameter; exactly one rule must match its whole path."""
    matches = [spec for pattern, spec in PARAM_RULES if re.fullmatch(pattern, name)]
    if len(matches) != 1:
        raise ValueError(f"parameter {name}: {len(matches)} sharding rules match, expected one")
    return matches[0]


def param_shardings(mesh: Mesh, params) -> dict:
    """NamedSharding of every parameter (arrays or shapes). Names the parameter that does not divide."""

    def sharding(path, leaf):
        name = path_name(path)
        spec = param_spec(name)
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise ValueError(
                    f"mesh: {axis}={mesh.shape[axis]} does not divide {name} of shape {leaf.shape}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, params)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of scalars and small tables."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Sharding of an array whose `axis` is the batch."""
    return NamedSharding(mesh, P(*(None,) * axis, BATCH))


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts a batch is split; batch sizes must be multiples of it."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def put_batch(mesh: Mesh, tree, axis: int = 0):
    """NumPy arrays, the same on every host, to arrays sharded along their batch axis."""
    sharding = batch_sharding(mesh, axis)

    def put(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)


def agree(flag: bool) -> bool:
    """The first host's view of a fact that hosts could see differently (a file, say)."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.int32(flag)))


def first_host_choice(options: list, chosen: list) -> list:
    """The first host's choices, on every host: a time-out may have struck one of them alone."""
    if jax.process_count() == 1:
        return chosen
    codes = np.asarray([options.index(choice) for choice in chosen], np.int32)
    return [options[code] for code in np.asarray(multihost_utils.broadcast_one_to_all(codes))]


def fetch(tree):
    """Device arrays to NumPy arrays, whole on every host."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), tree)
