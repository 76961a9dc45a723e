"""How the gradient is spread over tokens: the Lorenz curve of ISPO's Fig. 2b, of a run's policy.

    python -m jaxrl_reason.lorenz --workdir=runs/ispo [--step=latest|best|start|N]
    python -m jaxrl_reason.lorenz --workdir=runs/lorenz --step=start \\
        --config=configs/ispo.py:model=FOLDER,task=arithmetic

The second form looks at a Hugging Face folder. Samples the batch that the run would draw after that many
steps (with the same keys, so for a run that draws nothing else the very rollouts of its next step), scores
it with the run's own recipe, and takes for every response token the norm of the surrogate loss's gradient
with respect to the tempered logits, |Â_t|·‖π_t − e_{y_t}‖₂, without the weights of the loss's reduction.
The paper does not say which norm it takes; this one needs no backward pass per token. Tokens without
advantage have norm 0 and count as tokens: a second curve leaves them out. `--advantage=unit` sets |Â| = 1,
for the policy alone.

Prints the shares, also those of ISPO's sets 𝒜 (uncertain), C_Δ (drift from the start policy) and C
(critical), and writes <workdir>/lorenz/step_N.json and .png.
"""

import dataclasses
import functools
import os
import sys

import jax
import numpy as np
from absl import app, flags, logging
from rich.table import Table

from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason import policy_of_run, setup, training
from jaxrl_reason.config import TrainConfig
from jaxrl_reason.experience import Collector, Experience
from jaxrl_reason.metrics import PhaseTimer
from jaxrl_reason.model import lora
from jaxrl_reason.report import lorenz_curve
from jaxrl_reason.report.console import print_table
from jaxrl_reason.rewards import ispo
from jaxrl_reason.signals.gradient_norm import policy_gradient_norms
from jaxrl_reason.validate import require
from jaxrl_reason.verify import VerifierPool
from jaxrl_reason.workdir import write_json

ADVANTAGES = ("recipe", "unit")
ALL, ACTIVE = "all tokens", "tokens with an advantage"


def lorenz(
    config: TrainConfig, folder: str, step: str, advantage: str, num_batches: int
) -> tuple[int, dict]:
    """(number of the step, result) of a policy; the result is what lorenz/ gets as JSON."""
    # π_0 and the sets that need it for every recipe, not only for those trained with it
    config = dataclasses.replace(config, log=dataclasses.replace(config.log, all_signals=True))
    mesh = mesh_lib.make_mesh(**dataclasses.asdict(config.mesh))
    policy = policy_of_run.load_policy(folder, step, mesh, config)
    number, trained = policy.step, policy.params
    parts = training.build(config)
    if config.lora.rank:  # the start has adapters that do nothing yet
        trained = lora.split(policy.params)[1] or parts.start_params
    else:
        jax.tree.map(
            lambda x: x.delete(), parts.start_params
        )  # a copy of π_0 is kept for the drift
    if number:
        parts.stream.restore(policy.extra["stream"])
    del policy  # with LoRA it holds a base of its own
    whole = parts.whole(trained)
    batches, flat_groups = [], []
    with VerifierPool(config.verifier.num_workers, config.verifier.timeout_s) as pool:
        collect = Collector(config, parts, pool)
        norms_of = scorer(config, parts)
        for i in range(num_batches):
            experience = collect(trained, number + 1 + i, PhaseTimer())
            batches.append(token_rows(config, experience, norms_of(whole, experience.batch)))
            grouped = lambda x: x.reshape(len(experience.rows.problems), -1)  # noqa: B023, E731
            filled = grouped(experience.rows.rollouts.mask).any(axis=1)
            flat = (grouped(experience.advantages) == 0).all(axis=1)
            flat_groups.extend(flat[filled].tolist())
    tokens = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    return number, summarise(tokens, advantage) | {
        "step": number,
        "model": config.model.path,
        "recipe": config.algorithm.recipe,
        "temperature": config.rollout.temperature,
        "num_groups": len(flat_groups),
        "num_groups_without_advantage": sum(flat_groups),
    }


def scorer(config: TrainConfig, parts):
    """`norms(params, batch) -> [B,T]` on the host, in the learner's micro-batches."""
    norms = jax.jit(
        functools.partial(
            policy_gradient_norms,
            parts.model_config,
            temperature=config.rollout.temperature,
            chunk_tokens=config.learner.chunk_tokens,
        )
    )
    size = config.learner.micro_batch_size

    def run(params, batch):
        rows = [batch[k] for k in ("prompt_tokens", "prompt_mask", "tokens", "mask")]
        chunks = [
            norms(params, *mesh_lib.put_batch(parts.mesh, tuple(r[i : i + size] for r in rows)))
            for i in range(0, len(rows[0]), size)
        ]
        return np.concatenate(mesh_lib.fetch(chunks))

    return run


def token_rows(config: TrainConfig, experience: Experience, norms: np.ndarray) -> dict:
    """Arrays over the response tokens of a batch: ‖π − e_y‖, advantage, and membership in the sets."""
    signals, section = experience.signals, config.ispo
    uncertain = ispo.uncertain_tokens(signals.entropy, signals.mask, section.top_fraction)
    drift = ispo.drifted_tokens(
        signals.logp, signals.logp_ref, signals.mask, section.drift_threshold
    )
    # the recipe's own where it has one
    critical = experience.terms.get("critical", uncertain & drift)
    mask = np.asarray(signals.mask, bool)
    grid = {
        "norm": norms,
        "advantage": experience.advantages,
        "uncertain": uncertain,
        "drift": drift,
        "critical": critical,
    }
    return {name: np.asarray(values)[mask] for name, values in grid.items()}


def summarise(tokens: dict[str, np.ndarray], advantage: str) -> dict:
    """Curves and shares of `token_rows`; raises ValueError when no token has an advantage."""
    size = np.abs(tokens["advantage"])
    active = size > 0
    norms = tokens["norm"] if advantage == "unit" else size * tokens["norm"]
    if not norms.any():
        raise ValueError(
            f"no gradient: none of {len(norms)} response tokens has an advantage; "
            "use --advantage=unit, or a larger --num_batches"
        )
    curves = {ALL: lorenz_curve.summarise(norms)}
    if active.any() and not active.all():
        curves[ACTIVE] = lorenz_curve.summarise(norms[active])
    sets = {name: tokens[name] for name in ("uncertain", "drift", "critical")}
    return {
        "advantage": advantage,
        "num_tokens": len(norms),
        "num_tokens_without_advantage": int(np.sum(~active)),
        "curves": curves,
        "sets": lorenz_curve.set_shares(norms, sets),
    }


def tables(title: str, result: dict) -> list[Table]:
    """The result as two tables: shares of the largest norms, and of the sets."""
    top = Table(title=title)
    top.add_column("share of gradient norm carried by")
    for name, curve in result["curves"].items():
        top.add_column(f"{name} ({curve['count']})", justify="right")
    for fraction in lorenz_curve.TOP_FRACTIONS:
        cells = [f"{c['top'][str(fraction)]:.3f}" for c in result["curves"].values()]
        top.add_row(f"top {fraction:.0%}", *cells)
    top.add_row("Gini coefficient", *(f"{c['gini']:.3f}" for c in result["curves"].values()))
    sets = Table()
    for name in ("set", "share of tokens", "share of norm", "as many of the largest"):
        sets.add_column(name, justify="left" if name == "set" else "right")
    for name, share in result["sets"].items():
        sets.add_row(name, *(f"{value:.3f}" for value in share.values()))
    return [top, sets]


def main(_):
    logging.set_verbosity(logging.WARNING)
    args = flags.FLAGS
    try:
        require("--num_batches", args.num_batches, args.num_batches >= 1, ">= 1")
        config = policy_of_run.config_of_flags()
        found = type(config).__name__
        kind = isinstance(config, TrainConfig)
        require("--workdir", found, kind, "a run of train, or --config with a recipe")
        number, result = lorenz(config, args.workdir, args.step, args.advantage, args.num_batches)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    if not setup.is_first_process():
        return
    suffix = "" if args.advantage == "recipe" else f".{args.advantage}"
    path = os.path.join(args.out or os.path.join(args.workdir, "lorenz"), f"step_{number}{suffix}")
    title = f"{result['recipe']}, step {number}, |A| of the {args.advantage}"
    if args.advantage == "unit":
        title = f"{result['recipe']}, step {number}, |A| = 1"
    write_json(path + ".json", {"workdir": args.workdir} | result)
    lorenz_curve.draw(path + ".png", result["curves"], result["sets"], title)
    for table in tables(title, result):
        print_table(table)
    print(
        "without advantage: {num_tokens_without_advantage} of {num_tokens} response tokens, "
        "{num_groups_without_advantage} of {num_groups} whole groups".format(**result)
    )
    print(f"wrote {path}.json and .png")


if __name__ == "__main__":
    policy_of_run.define_flags()
    flags.DEFINE_enum("advantage", "recipe", ADVANTAGES, "Of the run's recipe, or 1 everywhere.")
    flags.DEFINE_integer("num_batches", 1, "Batches of the run's prompts to sample.")
    flags.DEFINE_string("out", None, "Folder to write to; default <workdir>/lorenz.")
    app.run(main)
