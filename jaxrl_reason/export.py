"""Write a run's policy as a Hugging Face folder that transformers loads.

    python -m jaxrl_reason.export --workdir=runs/ispo [--out=FOLDER] [--step=latest|best|start|N]

Of a LoRA run the adapters alone are written, as `peft` loads them; with --merged the whole model, the
adapters added to its matrices in float32.
"""

import os

from absl import app, flags, logging

from jaxrl_reason import config as config_lib
from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason import policy_of_run, setup
from jaxrl_reason.model import lora
from jaxrl_reason.model.decoder import cast_params
from jaxrl_reason.model.hf import save_pretrained


def export(folder: str, out: str, step: str, dtype: str, config=None, merged: bool = False) -> int:
    """Write checkpoint `step` of the run in `folder` to `out`; returns the step's number."""
    config = config or policy_of_run.run_config(folder)
    model = setup.model_folder(config.model.path)
    if os.path.isdir(out) and os.path.samefile(out, model):
        raise ValueError(f"--out: {out} is the model that the run started from")
    mesh = mesh_lib.make_mesh(data=1, fsdp=-1)
    policy = policy_of_run.load_policy(folder, step, mesh, config)
    model_config, params = policy.model_config, policy.params
    adapters = lora.split(params)[1]
    if merged and not adapters:
        raise ValueError(f"--merged: step {policy.step} of {folder} has no adapters")
    kind, others = (lora.CONFIG_FILE, "config.json") if adapters and not merged else (
        "config.json", lora.CONFIG_FILE
    )  # fmt: skip
    if os.path.exists(os.path.join(out, others)):
        # peft would take one for the other
        raise ValueError(f"--out: {out} holds {others} of another export, and this writes {kind}")
    if adapters and not merged:
        if dtype != "float32":
            raise ValueError(f"--dtype: adapters are written in float32, not {dtype}")
        lora.save_adapters(out, model_config, adapters, os.path.abspath(model))
        return policy.step
    whole = lora.merge(model_config, params, dtype) if merged else cast_params(params, dtype)
    save_pretrained(out, lora.without_lora(model_config), whole, tokenizer_from=model)
    return policy.step


def main(_):
    logging.set_verbosity(logging.WARNING)
    args = flags.FLAGS
    out = args.out or os.path.join(args.workdir, "merged" if args.merged else "export")
    config = policy_of_run.config_of_flags()
    number = export(args.workdir, out, args.step, args.dtype, config, args.merged)
    print(f"wrote step {number} of {args.workdir} to {out}")


if __name__ == "__main__":
    policy_of_run.define_flags()
    flags.DEFINE_string(
        "out", None, "Where to write; default <workdir>/export, or <workdir>/merged."
    )
    flags.DEFINE_enum("dtype", "float32", config_lib.MODEL_DTYPES, "Dtype of the written weights.")
    flags.DEFINE_bool("merged", False, "Of a LoRA run the whole model, not the adapters alone.")
    app.run(main)
