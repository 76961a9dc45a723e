"""Write a run's policy as a Hugging Face folder that transformers loads.

python -m jaxrl_reason.export --workdir=runs/ispo [--out=FOLDER] [--step=latest|best|N]
"""

import os

from absl import app, flags, logging
from ml_collections import config_flags

from jaxrl_reason import checkpoint, learner, setup, workdir
from jaxrl_reason import config as config_lib
from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason.data.tokenizer import Tokenizer
from jaxrl_reason.model import config as model_config_lib
from jaxrl_reason.model.decoder import abstract_params, cast_params
from jaxrl_reason.model.hf import save_pretrained

STEPS = ("latest", "best")


def export(folder: str, out: str, step: str, dtype: str, config=None) -> int:
    """Write checkpoint `step` of the run in `folder` to `out`; returns the step's number."""
    if config is None:
        path = os.path.join(folder, "config.json")
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path}: no such file, so this is no run folder")
        written = workdir.read_json(path)
        cls = {"train": config_lib.TrainConfig, "sft": config_lib.SftConfig}[written["main"]]
        config = config_lib.from_run(cls, written["config"])
    checkpoints = checkpoint.Checkpoints(os.path.join(folder, "checkpoints"))
    number = choose_step(checkpoints, step, folder)
    model = setup.model_folder(config.model.path)
    if os.path.isdir(out) and os.path.samefile(out, model):
        raise ValueError(f"--out: {out} is the model that the run started from")
    tokenizer = Tokenizer(model)
    model_config = model_config_lib.read(model, num_tokens=tokenizer.size)
    model_config = setup.with_end_tokens(model_config, config.model, tokenizer)
    mesh = mesh_lib.make_mesh(data=1, fsdp=-1)
    optimizer, _ = learner.make_optimizer(config.optimizer, config.num_steps)
    template = learner.abstract_state(mesh, optimizer, abstract_params(model_config))
    state, _ = checkpoints.restore(number, template)
    save_pretrained(out, model_config, cast_params(state.params, dtype), tokenizer_from=model)
    checkpoints.close()
    return number


def choose_step(checkpoints: checkpoint.Checkpoints, step: str, folder: str) -> int:
    """Number of the step named `latest`, `best` or by its number; an error lists what is there."""
    kept = checkpoints.steps
    if not kept:
        raise FileNotFoundError(f"{folder}: no finished checkpoint to export")
    number = {"latest": checkpoints.latest, "best": checkpoints.best}.get(step, step)
    if number is None or not str(number).isdigit() or int(number) not in kept:
        raise ValueError(f"--step: {step!r} is not there; allowed: {', '.join(STEPS)}, {kept}")
    return int(number)


def main(_):
    logging.set_verbosity(logging.WARNING)
    args = flags.FLAGS
    out = args.out or os.path.join(args.workdir, "export")
    config = args.config and config_lib.from_config_dict(config_lib.TrainConfig, args.config)
    number = export(args.workdir, out, args.step, args.dtype, config)
    print(f"wrote step {number} of {args.workdir} to {out}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", None, "Config in place of the run folder's config.json."
    )
    flags.DEFINE_string("workdir", None, "Run folder.", required=True)
    flags.DEFINE_string("out", None, "Where to write; default <workdir>/export.")
    flags.DEFINE_string("step", "latest", "latest, best, or a step's number.")
    flags.DEFINE_enum("dtype", "float32", config_lib.MODEL_DTYPES, "Dtype of the written weights.")
    app.run(main)
