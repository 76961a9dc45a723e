"""What the mains share: reading flags, finding and loading a model."""

import dataclasses
import functools
import os
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from jaxrl_reason import config as config_lib
from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason.data.tokenizer import Tokenizer
from jaxrl_reason.model import config as model_config_lib
from jaxrl_reason.model import init_params, load_pretrained
from jaxrl_reason.model.decoder import abstract_params

EMBEDDED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "embedded", "tiny")


def run(main, cls) -> None:
    """Define --config and --workdir and run a main; `cls` is the config dataclass it reads.

    A misspelt --config key ends in one sentence that names it and the keys there are.
    """
    config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/ispo.py:model=tiny.")
    flags.DEFINE_string("workdir", None, "Run folder; an interrupted run in it is continued.")
    flags.mark_flags_as_required(["config", "workdir"])
    known = dataclasses.asdict(cls())
    for argument in sys.argv[1:]:
        if argument.startswith("--config."):
            check_key(argument.removeprefix("--config.").partition("=")[0], known)
    app.run(main)


def check_key(key: str, known: dict) -> None:
    """Leave with an error when a dotted key is not declared."""
    section = known
    for name in key.split("."):
        if not isinstance(section, dict) or name not in section:
            there = ", ".join(section) if isinstance(section, dict) else "no more keys"
            sys.exit(f"error: {key}: unknown config key {name!r}; known here: {there}")
        section = section[name]


def read_config(cls):
    """The validated config dataclass of --config; an error in it ends the program in one sentence."""
    logging.set_verbosity(logging.WARNING)  # orbax logs every save at INFO
    try:
        return config_lib.from_config_dict(cls, flags.FLAGS.config)
    except ValueError as error:
        sys.exit(f"error: {error}")


def model_folder(path: str) -> str:
    """Folder of a model name: "tiny" is the embedded model."""
    folder = EMBEDDED if path == "tiny" else path
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"model.path: no folder {folder!r} ('tiny' is the embedded model)")
    return folder


def load_model(section, mesh, *, masters: bool = True, random_seed: int | None = None):
    """(ModelConfig, parameters on the mesh, Tokenizer) of a config's model section.

    `masters` gives float32 parameters, else they have the compute dtype. With `random_seed` the folder
    needs no weights: the parameters are random.
    """
    folder = model_folder(section.path)
    tokenizer = Tokenizer(folder)
    shardings = functools.partial(mesh_lib.param_shardings, mesh)
    if random_seed is not None:
        model_config = model_config_lib.read(folder, dtype=section.dtype, num_tokens=tokenizer.size)
        init = jax.jit(
            functools.partial(init_params, model_config, random_seed),
            out_shardings=shardings(abstract_params(model_config)),
        )
        return with_end_tokens(model_config, section, tokenizer), init(), tokenizer
    param_dtype = "float32" if masters else section.dtype
    model_config, params = load_pretrained(
        folder, section.dtype, param_dtype=param_dtype, shardings=shardings
    )
    return with_end_tokens(model_config, section, tokenizer), params, tokenizer


def with_end_tokens(model_config, section, tokenizer):
    """The config with `model.extra_eos_tokens` added: base models name one end token, chats use another."""
    ids = set(model_config.eos_token_ids)
    for token in filter(None, section.extra_eos_tokens.split(",")):
        if token not in tokenizer.special:
            raise ValueError(
                f"model.extra_eos_tokens: {token!r} is no special token of {tokenizer.folder}; "
                f"there are {', '.join(tokenizer.special)}"
            )
        ids.add(tokenizer.special[token])
    return dataclasses.replace(model_config, eos_token_ids=tuple(sorted(ids)))


def is_first_process() -> bool:
    """Whether this process writes the run folder."""
    return jax.process_index() == 0
