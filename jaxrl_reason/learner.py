"""The jitted update: accumulate gradients over micro-batches, clip, AdamW, skip what is not finite."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason.masked import merge_metrics
from jaxrl_reason.model import decoder, lora
from jaxrl_reason.model.config import ModelConfig
from jaxrl_reason.signals.score import score
from jaxrl_reason.types import TrainState


def make_optimizer(
    section, num_steps: int, updates_per_step: int = 1
) -> tuple[optax.GradientTransformation, Callable]:
    """AdamW behind global-norm clipping, and its schedule (updates done -> rate of the next one)."""
    peak, warmup = section.learning_rate, section.warmup_steps * updates_per_step
    num_steps = num_steps * updates_per_step
    if section.schedule == "cosine":
        total = max(num_steps, warmup + 1)
        shape = optax.warmup_cosine_decay_schedule(
            0.0 if warmup else peak, peak, warmup, total, peak * section.final_fraction
        )
    else:
        ramp = optax.linear_schedule(0.0, peak, warmup) if warmup else optax.constant_schedule(peak)
        shape = optax.join_schedules([ramp, optax.constant_schedule(peak)], [warmup])
    # one ahead in the warm-up: an update at rate 0 would waste the first batch of rollouts
    schedule = lambda count: shape(jnp.where(count < warmup, count + 1, count))  # noqa: E731
    adamw = optax.adamw(
        schedule, b1=section.b1, b2=section.b2, eps=section.eps, weight_decay=section.weight_decay
    )
    return optax.chain(optax.clip_by_global_norm(section.max_grad_norm), adamw), schedule


def state_shardings(mesh, optimizer, template) -> TrainState:
    """Sharding of every leaf of a TrainState: moments are sharded like their parameters."""
    params = mesh_lib.param_shardings(mesh, template)
    scalar = mesh_lib.replicated(mesh)
    abstract = jax.eval_shape(optimizer.init, template)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        abstract,
        params,
        transform_non_params=lambda _: scalar,
    )
    return TrainState(params, opt_state, scalar, scalar, scalar)


def init_state(mesh, optimizer, params) -> TrainState:
    """TrainState of float32 master parameters that already lie on the mesh."""
    shardings = state_shardings(mesh, optimizer, params)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    zeros = [jax.device_put(jnp.int32(0), shardings.step) for _ in range(3)]
    return TrainState(params, opt_state, *zeros)


def abstract_state(mesh, optimizer, template) -> TrainState:
    """Shapes and shardings of a TrainState, for restoring a checkpoint onto this mesh."""
    shapes = jax.eval_shape(
        lambda p: TrainState(p, optimizer.init(p), jnp.int32(0), jnp.int32(0), jnp.int32(0)),
        template,
    )
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        state_shardings(mesh, optimizer, template),
    )


def make_update(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    loss_fn: Callable,
    *,
    temperature: float,
    chunk_tokens: int,
    remat: bool,
    state_sharding: TrainState,
    on_policy: bool = False,
) -> Callable:
    """`update(state, batch, frozen={}) -> (state, metrics)`, jitted, `state` donated.

    `batch` holds prompt_tokens, prompt_mask, tokens, mask and what `loss_fn(logp, entropy, batch)` reads,
    each of shape [micro-batches, rows, …]; loss_fn returns Σ w·loss with weights normalised over the whole
    batch, so the sum over micro-batches is the gradient of the whole. `frozen` are parameters beside
    the trained ones (LoRA's base). A non-finite loss or gradient leaves parameters and optimiser as
    they were and is counted; so does a batch in which no token has weight, uncounted. Metrics are
    (sum, count) pairs. `policy/rescoring_gap/max` is the distance to logp_old: of rounding alone while
    the policy is the one that was scored.

    `on_policy`: this is the one update of its batch, so π_old is π_θ and the ratio is exactly 1. Then
    log π_old is the update's own log-prob, without gradient: the scoring pass computes the same numbers
    in another compiled program, and differs by rounding (`policy/rescoring_gap`), which the ratio
    would turn into noise.
    """
    scorer = functools.partial(
        score, config, temperature=temperature, chunk_tokens=chunk_tokens, remat=remat
    )

    def loss_of(params, micro, frozen):
        logp, entropy = scorer(
            lora.combine(frozen, params),
            micro["prompt_tokens"],
            micro["prompt_mask"],
            micro["tokens"],
            micro["mask"],
        )
        old = jax.lax.stop_gradient(logp)
        loss, metrics = loss_fn(logp, entropy, micro | {"logp_old": old} if on_policy else micro)
        if "logp_old" in micro:
            gap = jnp.where(micro["mask"], jnp.abs(old - micro["logp_old"]), 0.0)
            metrics = metrics | {"policy/rescoring_gap/max": jnp.max(gap)}
        return loss, metrics

    def update(state: TrainState, batch: dict, frozen: dict | None = None):
        frozen = {} if frozen is None else frozen

        def accumulate(total, micro):
            (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(
                state.params, micro, frozen
            )
            loss_sum, metric_sums, grad_sums = total
            grads = jax.tree.map(jnp.add, grad_sums, grads)
            return (loss_sum + loss, merge_metrics(metric_sums, metrics), grads), None

        first = jax.tree.map(lambda x: x[0], batch)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(lambda m: (*loss_of(state.params, m, frozen), state.params), first),
        )
        (loss, metrics, grads), _ = jax.lax.scan(accumulate, zeros, batch)
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # a batch of blanks alone must not let Adam's momentum move the weights
        keep = functools.partial(jnp.where, finite & jnp.any(batch["weights"] > 0))
        new_state = TrainState(
            params=jax.tree.map(keep, params, state.params),
            opt_state=jax.tree.map(keep, opt_state, state.opt_state),
            step=state.step + 1,
            skipped=state.skipped + (~finite).astype(jnp.int32),
            skipped_in_row=jnp.where(finite, 0, state.skipped_in_row + 1),
        )
        one = jnp.float32(1)
        metrics = metrics | {"loss": (loss, one), "grad_norm": (norm, one)}
        return new_state, metrics

    return jax.jit(update, donate_argnums=0, out_shardings=(state_sharding, None))


def split_micro(batch: dict, micro_batch_size: int) -> dict:
    """[B, …] NumPy arrays as [B / micro, micro, …]."""
    return {k: v.reshape(-1, micro_batch_size, *v.shape[1:]) for k, v in batch.items()}


def mini_batches(batch: dict, count: int) -> list[dict]:
    """[B, …] arrays as `count` batches of B / count adjacent rows, one for each optimiser step."""
    parts = {name: np.split(values, count) for name, values in batch.items()}
    return [{name: values[i] for name, values in parts.items()} for i in range(count)]


def rollout_params(config: ModelConfig, shardings) -> Callable:
    """Parameters in the compute dtype for sampling and scoring; the masters themselves in float32."""
    if config.dtype == "float32":
        return lambda params: params
    cast = jax.jit(
        lambda params: decoder.cast_params(params, config.dtype), out_shardings=shardings
    )

    def to_compute_dtype(params):
        base, adapters = lora.split(params)
        if not adapters:
            return cast(params)
        # the frozen base has the compute dtype already; a copy of it would double its memory
        return lora.combine(base, decoder.cast_params(adapters, config.dtype))

    return to_compute_dtype
