"""Whether a checkpoint holds what this release needs."""

from typing import Any

import jax

from vqjax.errors import UserError
from vqjax.training.state import TrainState

_NAMED = 5


def check_structure(saved: dict[str, Any], wanted: TrainState, release: str) -> None:
    """Refuses a checkpoint of another structure, and says what is different.

    The sums of the log window may differ: what is new in them starts at zero.

    Args:
      saved: Shapes and types of what the checkpoint holds.
      wanted: What this release needs.
      release: That of vqjax that wrote the checkpoint.

    Raises:
      UserError: An array is missing, not known or of another shape or type.
    """
    before, now = _arrays(saved), _arrays(wanted)
    changes = [f"{name} is {before[name]}, not {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    changes += [f"{name} is missing" for name in now if name not in before]
    changes += [f"{name} is not known" for name in before if name not in now]
    if changes:
        more = f" and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
        raise UserError(
            f"The checkpoint was written by vqjax {release}, and this release cannot continue it: "
            f"{'; '.join(changes[:_NAMED])}{more}. Continue with vqjax=={release}, or train in another --workdir."
        )


def _arrays(tree: Any) -> dict[str, str]:
    """The shape and type of every array but the window's, by its place in the state."""
    arrays = {_name(path): array for path, array in jax.tree_util.tree_flatten_with_path(tree)[0]}
    return {
        name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items() if not name.startswith("window.")
    }


def _name(path: tuple[Any, ...]) -> str:
    # Orbax has names and places where the state has attributes.
    return ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
