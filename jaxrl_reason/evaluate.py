"""Evaluate a model: greedy Pass@1, avg@k, unbiased pass@k, maj@k, format and truncation rates.

    python -m jaxrl_reason.evaluate --config=configs/evaluate.py:model=tiny,task=arithmetic \\
        --workdir=runs/evaluate

Prints a table; writes eval/<source>.json and every generation to eval/<source>.generations.jsonl.
"""

import dataclasses
import os

from absl import flags

from jaxrl_reason import evaluation, setup, workdir
from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason.config import EvaluateConfig
from jaxrl_reason.data.tasks import evaluation_problems
from jaxrl_reason.report.console import Console, print_table, results_table
from jaxrl_reason.verify import VerifierPool


def evaluate(config: EvaluateConfig, folder: str) -> dict:
    """Evaluate one model on one source; returns the result that is written to eval/."""
    mesh = mesh_lib.make_mesh(**dataclasses.asdict(config.mesh))
    problems = evaluation_problems(config.eval)
    model_config, params, tokenizer = setup.load_model(config.model, mesh, masters=False)
    first = setup.is_first_process()
    total = len(problems) * (2 if config.eval.num_generations else 1)
    with (
        VerifierPool(config.verifier.num_workers, config.verifier.timeout_s) as pool,
        Console(total, quiet=not first, unit="prompt") as console,
    ):
        result, generations = evaluation.evaluate(
            model_config,
            params,
            tokenizer,
            problems,
            evaluation.Decoding.of(config, config.eval, config.max_completion_length, config.seed),
            pool,
            mesh,
            progress=lambda done, _: console.step(done, {}),
        )
    source = config.eval.source
    result = evaluation.describe(result, source, config.model.path)
    if first:
        name = os.path.basename(source.replace(":", "_")).removesuffix(".jsonl")
        path = os.path.join(folder, "eval", f"{name}.json")
        evaluation.write(path, result, generations)
        workdir.write_json(path.removesuffix(".json") + ".config.json", dataclasses.asdict(config))
        print_table(results_table(f"{config.model.path} on {source}", {name: result}))
        print(f"wrote {path}")
    return result


def main(_):
    mesh_lib.start_distributed()
    evaluate(setup.read_config(EvaluateConfig), flags.FLAGS.workdir)


if __name__ == "__main__":
    setup.run(main, EvaluateConfig)
