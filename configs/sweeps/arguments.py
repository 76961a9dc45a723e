"""The argument of a sweep file: its own names beside those of the config files."""

from configs import common


def read(arg: str | None, **own: str) -> tuple[dict[str, str], str]:
    """(values of the sweep's own names, argument for the config files). Unknown names are refused.

    With own = {"part": "abc"}, `part=a,model=tiny` gives {"part": "a"}, "model=tiny,task=arithmetic".
    """
    values = {**common.DEFAULTS, **own}
    for part in filter(None, (arg or "").split(",")):
        name, _, value = part.partition("=")
        if name not in values or not value:
            raise ValueError(f"sweep argument {part!r}: expected name=value, names: {list(values)}")
        values[name] = value
    shared = ",".join(f"{name}={values[name]}" for name in common.DEFAULTS)
    return {name: values[name] for name in own}, shared
