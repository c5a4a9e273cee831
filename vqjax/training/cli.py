"""What the two front doors share: flags, and mistakes told in one line."""

import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import app, flags, logging

from vqjax.errors import UserError
from vqjax.runtime.compilation import enable_compilation_cache
from vqjax.runtime.processes import hard_exit, is_distributed, is_lost_process
from vqjax.runtime.signals import Interrupted
from vqjax.runtime.streams import LastingStream
from vqjax.training.config import KINDS, default_config, field_names, field_type, nearest_name

USER_ERROR_STATUS = 2


def run(main: Callable[[], object], default_config_file: Path | None = None) -> None:
    """Parses the flags, runs ``main`` and leaves the process.

    The exit status is 0; 2 after what the user can mend (one line on standard error, no stack trace); 143 or 130 when
    a run was stopped by SIGTERM or SIGINT and has saved a checkpoint; 1 after any other failure.

    Args:
      main: Takes no arguments; reads its flags.
      default_config_file: What ``--config`` is when it is not given.
    """
    # Before the streams are others: absl tells by them which handlers it replaces.
    logging.use_absl_handler()
    sys.stdout, sys.stderr = LastingStream.of(sys.stdout), LastingStream.of(sys.stderr)
    jax.config.config_with_absl()
    enable_compilation_cache()
    # Orbax logs the stack trace of every thread of a failed save; the error that ends the run says what happened.
    logging.get_absl_handler().addFilter(lambda record: "orbax" not in record.pathname)
    app.run(lambda _: _guarded(main), flags_parser=lambda argv: _guarded(lambda: _parse(argv, default_config_file)))


def _guarded(function: Callable[[], object]) -> object:
    # Below warnings the libraries report on themselves; our own messages do not go through their logger.
    logging.set_verbosity(logging.WARNING)
    try:
        return function()
    except (Exception, KeyboardInterrupt) as error:
        told = _message_and_status(error)
        if told is None and not is_distributed():
            raise
        if told is None:
            traceback.print_exc()
            hard_exit(1)
        message, status = told
        print(" ".join(message.split()), file=sys.stderr, flush=True)
        # Others that were asked to stop leave at the same step; after an error they would wait for this process.
        if is_distributed() and not isinstance(error, Interrupted):
            hard_exit(status)
        return sys.exit(status)


def _message_and_status(error: BaseException) -> tuple[str, int] | None:
    if isinstance(error, UserError):
        return f"error: {error}", USER_ERROR_STATUS
    if isinstance(error, FloatingPointError):
        return f"error: {error}", 1
    if isinstance(error, Interrupted):
        return str(error), 128 + error.signal_number
    if isinstance(error, KeyboardInterrupt):
        return "interrupted.", 130
    if is_lost_process(error):
        reason = str(error).splitlines()[0]
        return (
            f"error: another process of this run has ended, see what it said ({reason}). Start all of them again with "
            "the same commands: the run goes on from its last checkpoint.",
            1,
        )
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        return (
            "error: out of memory: raise config.gradient_accumulation, or lower config.batch_size, config.model.width "
            "or config.quantizer.num_codes.",
            1,
        )
    if isinstance(error, OSError):
        # The system's own refusals (no space, no permission) already name what they refuse.
        return f"error: {error}", USER_ERROR_STATUS
    return None


def _parse(argv: Sequence[str], default_config_file: Path | None) -> list[str]:
    argv = list(argv)
    if default_config_file is not None:
        if not any(re.match(r"--?config(=|$)", argument) for argument in argv):
            argv.insert(1, f"--config={default_config_file}")
        _check_config_file(argv)
        _check_overrides(argv)
    try:
        _, *unexpected = flags.FLAGS(argv)
    except flags.IllegalFlagValueError as error:
        raise UserError(_illegal_value(str(error))) from error
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    except UserError:
        raise
    except Exception as error:
        raise UserError(_broken_config(argv, error)) from error
    if unexpected:
        raise UserError(f"argument {unexpected[0]!r} is not expected: write --config=FILE or --name=value.")
    return argv[:1]


def _illegal_value(message: str) -> str:
    """Says which type a field has; the libraries report what Python's int() and float() say."""
    if match := re.match(r"flag --(config\.[^=]+)=(.*?): ", message):
        kind = field_type(default_config(), match[1].removeprefix("config."))
        return f"--{match[1]}={match[2]} is not allowed: use {KINDS[kind]}."
    # A failing config file arrives as a whole stack trace inside the message; its last line is the reason.
    return [line for line in message.splitlines() if line.strip()][-1].removeprefix("vqjax.errors.UserError: ")


def _config_path(argv: Sequence[str]) -> str:
    given = [
        following if match[1] is None else match[1]
        for argument, following in zip(argv, [*argv[1:], ""], strict=True)
        if (match := re.match(r"--?config(?:=(.*)|$)", argument))
    ]
    return given[-1].partition(":")[0]


def _check_config_file(argv: Sequence[str]) -> None:
    path = _config_path(argv)
    if not Path(path).is_file():
        raise UserError(
            f"--config={path} is no file: pass a config such as configs/cifar10.py, with arguments after a colon."
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


def _broken_config(argv: Sequence[str], error: Exception) -> str:
    """Config files are the user's code: what fails in them is told in one line, with its place."""
    path = _config_path(argv)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    place = f", line {lines[-1]}" if lines else ""
    return f"--config={path}{place} cannot be used: {type(error).__name__}: {error}"
