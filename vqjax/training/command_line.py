"""What the two front doors share: flags, and mistakes told in one line."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import app, flags, logging

from vqjax.errors import UserError
from vqjax.training.config import default_config, field_names, nearest_name
from vqjax.training.interrupt import Interrupted

USER_ERROR_STATUS = 2


def run(main: Callable[[], object], default_config_file: Path | None = None) -> None:
    """Parses the flags, runs ``main`` and leaves the process.

    The exit status is 0; 2 after a mistake of the user (one line on standard error, no stack trace); 143 or 130 when
    a run was stopped by SIGTERM or SIGINT and has saved a checkpoint; 1 after any other failure.

    Args:
      main: Takes no arguments; reads its flags.
      default_config_file: What ``--config`` is when it is not given.
    """
    jax.config.config_with_absl()
    app.run(lambda _: _guarded(main), flags_parser=lambda argv: _guarded(lambda: _parse(argv, default_config_file)))


def _guarded(function: Callable[[], object]) -> object:
    # Below warnings the libraries report on themselves; our own messages do not go through their logger.
    logging.set_verbosity(logging.WARNING)
    try:
        return function()
    except UserError as error:
        return _leave(f"error: {error}", USER_ERROR_STATUS)
    except FloatingPointError as error:
        return _leave(f"error: {error}", 1)
    except Interrupted as error:
        return _leave(str(error), 128 + error.signal_number)
    except KeyboardInterrupt:
        return _leave("stopped before the first step.", 130)
    except OSError as error:
        # The system's own refusals (no space, no permission) already name what they refuse.
        return _leave(f"error: {error}", 1)


def _leave(message: str, status: int) -> None:
    print(" ".join(message.split()), file=sys.stderr, flush=True)
    sys.exit(status)


def _parse(argv: Sequence[str], default_config_file: Path | None) -> list[str]:
    argv = list(argv)
    if default_config_file is not None:
        if not any(re.match(r"--?config(=|$)", argument) for argument in argv):
            argv.insert(1, f"--config={default_config_file}")
        _check_config_file(argv)
        _check_overrides(argv)
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        # A failing config file arrives as a whole stack trace inside the message; its last line is the reason.
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UserError(lines[-1].removeprefix("vqjax.errors.UserError: ")) from error


def _check_config_file(argv: Sequence[str]) -> None:
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := re.match(r"--?config(?:=(.*)|$)", argument):
            path = (following if match[1] is None else match[1]).partition(":")[0]
            if not Path(path).is_file():
                raise UserError(
                    f"--config={path} is no file: pass a config such as configs/cifar10.py, "
                    "with arguments after a colon."
                )


def _check_overrides(argv: Sequence[str]) -> None:
    known = sorted(field_names(default_config()))
    groups = {name.rpartition(".")[0] for name in known}
    for argument in argv:
        if match := re.match(r"--?(?:no)?config\.([^=]+)", argument):
            if match[1] in groups:
                field = next(name for name in known if name.startswith(f"{match[1]}."))
                raise UserError(f"--config.{match[1]} is a group: set one of its fields, such as --config.{field}.")
            if match[1] not in known:
                raise UserError(f"--config.{match[1]} is unknown{nearest_name(match[1], known)}")
