"""The command ``vqjax``: subcommands, their flags, and error messages of one line.

The flags of a subcommand are the parameters of its function, whose docstring says what they mean.
"""

import argparse
import gc
import importlib
import inspect
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from vqjax.errors import UserError, did_you_mean
from vqjax.runtime.compilation import enable_compilation_cache
from vqjax.runtime.processes import hard_exit, is_distributed, is_lost_process
from vqjax.runtime.signals import Interrupted
from vqjax.runtime.signature import Call
from vqjax.runtime.streams import LastingStream

USER_ERROR_STATUS = 2

# Python's default of 700 takes a tenth of the time in which modules load and programs are traced: both make objects
# that stay, and the collector visits them again and again.
_ALLOCATIONS_PER_COLLECTION = 50_000

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Command(NamedTuple):
    """A subcommand.

    Attributes:
      function: Module and name of the function; imported when it is called.
      summary: What it does, in a line.
      example: Arguments to try.
      other: Another use of the same name, taken where a flag is given that only it has.
    """

    function: str
    summary: str
    example: str
    other: "Command | None" = None

    def imported(self) -> Callable[..., Any]:
        """Import and return the function."""
        module, _, function = self.function.partition(":")
        return getattr(importlib.import_module(module), function)


COMMANDS = {
    "train": Command(
        "vqjax.training.cli:train_command",
        "Train a model, or continue a run.",
        "--config=cifar10 --workdir=runs/cifar10 --config.optimizer.learning_rate=1e-4",
    ),
    "eval": Command(
        "vqjax.training.evaluate:evaluate_workdir",
        "Evaluate a checkpoint, or compare two sets of images.",
        "--workdir=runs/cifar10 --export_tokens=tokens.npz",
        other=Command(
            "vqjax.training.compare:compare_images",
            "Compare two sets of images.",
            "--real=photographs --fake=samples.npz --features=pt_inception-2015-12-05-6726825d.pth",
        ),
    ),
    "import": Command(
        "vqjax.training.import_run:import_checkpoint",
        "Make a run of a published tokenizer.",
        "vqgan_imagenet_f16_1024.ckpt --workdir=runs/taming --config.data.source=tfds --config.data.name=imagenet2012",
    ),
    "stats": Command(
        "vqjax.training.statistics:write_statistics",
        "Measure a data set for rFID.",
        "--features=pt_inception-2015-12-05-6726825d.pth --output=cifar10.npz --config.data.source=tfds "
        "--config.data.name=cifar10",
    ),
    "convert": Command(
        "vqjax.training.convert:convert_features",
        "Write the weights of LPIPS into a file for the trainer.",
        "vgg16-397923af.pth --heads=vgg.pth --output=lpips-vgg.safetensors",
    ),
    "tokens": Command(
        "vqjax.training.tokens:write_tokens",
        "Write the tokens of a data set, to train a generator on.",
        "--workdir=runs/cifar10 --out=tokens/cifar10 --flip",
    ),
    "sample": Command(
        "vqjax.training.sample:sample_images",
        "Draw images from a model of tokens.",
        "--workdir=runs/generator --num=10000 --guidance=2",
    ),
    "share": Command(
        "vqjax.training.share:share_tokenizer",
        "Write the tokenizer of a run for others, or upload it.",
        "--workdir=runs/cifar10 --out=tokenizer",
    ),
    "reconstruct": Command(
        "vqjax.training.reconstruct:reconstruct_image",
        "Show what a tokenizer keeps of a photograph.",
        "photograph.jpg --tokenizer=runs/quickstart",
    ),
    "plot": Command(
        "vqjax.training.plot:plot_run",
        "Draw the codebook of a run beside the vectors that it quantizes.",
        "codebook --workdir=runs/quickstart",
    ),
    "completion": Command(
        "vqjax.training.completion:print_completion",
        "Print the completion of these commands for bash and zsh.",
        "> ~/.local/share/bash-completion/completions/vqjax",
    ),
}
"""The subcommands by name."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand; see :func:`run`.

    Args:
      argv: The subcommand and its flags; those of the process by default.
    """
    _guarded(lambda: _command(*(sys.argv[1:] if argv is None else argv)))


def run(function: Callable[..., Any], program: str, example: str, argv: Sequence[str] | None = None) -> None:
    """Call a function with its parameters as flags, and end the process if it fails.

    The exit status is 0; 2 after what the user can mend (one line on standard error, no stack trace); 143 or 130 when
    a run was stopped by SIGTERM, SIGINT or SIGHUP and has saved a checkpoint; 1 after any other failure.

    Args:
      function: Its parameters are annotated, and described in the section ``Args:`` of its docstring.
      program: How the program is started.
      example: Flags to try.
      argv: The flags; those of the process by default.
    """
    _guarded(lambda: _call(function, program, example, sys.argv[1:] if argv is None else argv))


def _guarded(action: Callable[[], object]) -> None:
    # Until a run can save: Python's own answer, an exception, shows a stack or is lost in a callback of JAX.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.set_threshold(_ALLOCATIONS_PER_COLLECTION)
    try:
        _quiet_libraries()
        sys.stdout, sys.stderr = LastingStream.of(sys.stdout), LastingStream.of(sys.stderr)
        action()
    except (Exception, KeyboardInterrupt) as error:
        described = _message_and_status(error)
        if described is None and not is_distributed():
            raise
        if described is None:
            traceback.print_exc()
            hard_exit(1)
        message, status = described
        print(" ".join(message.split()), file=sys.stderr, flush=True)
        # Others that were asked to stop leave at the same step; after an error they would wait for this process.
        if is_distributed() and not isinstance(error, Interrupted):
            hard_exit(status)
        sys.exit(status)


def _quiet_libraries() -> None:
    """Silence what libraries log about themselves below warnings."""
    from absl import logging

    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    # Orbax logs the stack trace of every thread of a failed save; the error that ends the run says what happened.
    logging.get_absl_handler().addFilter(lambda record: "orbax" not in record.pathname)


def _message_and_status(error: BaseException) -> tuple[str, int] | None:
    """The line to print and the exit status; None for a defect, which keeps its stack trace."""
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
            f"error: another process of this run has ended, see its messages ({reason}). Start all of them again with "
            "the same commands: the run resumes from its last checkpoint.",
            1,
        )
    if isinstance(error, jax.errors.JaxRuntimeError) and re.search("RESOURCE_EXHAUSTED|Out of memory", str(error)):
        return (
            "error: out of memory: raise config.gradient_accumulation, or lower config.batch_size or the sizes in "
            "config.model and config.quantizer.",
            1,
        )
    if isinstance(error, ModuleNotFoundError) and not (error.name or "vqjax").startswith("vqjax"):
        return f'error: the package {error.name} is not installed: run pip install "vqjax[train]".', USER_ERROR_STATUS
    if isinstance(error, OSError):
        # The system's own refusals (no space, no permission) already name what they refuse.
        return f"error: {error}", USER_ERROR_STATUS
    return None


def _command(name: str = "--help", *flags: str) -> None:
    if name in ("-h", "--help", "help"):
        print(_overview())
        return
    if name not in COMMANDS:
        raise UserError(f"{name!r} is not a command of vqjax; {did_you_mean(name, COMMANDS)}")
    command, program = COMMANDS[name], f"vqjax {name}"
    if command.other:
        fields, others = (Call(use.imported()).fields for use in (command, command.other))
        given = {flag.partition("=")[0].removeprefix("--") for flag in flags if flag.startswith("-")}
        if given & {"help", "-h"}:
            print(_parser(command.imported(), program, command.example).format_help())
            command = command.other
        elif of_other := sorted(given & (others.keys() - fields.keys())):
            if of_this := sorted(given & (fields.keys() - others.keys())):
                raise UserError(f"--{of_this[0]} and --{of_other[0]} do not go together; see {program} --help.")
            command = command.other
    _call(command.imported(), program, command.example, flags)


def _overview() -> str:
    lines = ["usage: vqjax COMMAND [--flag=value ...]", "", "commands:"]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<10} {command.summary}")
        lines += [f"             vqjax {name} {use.example}" for use in (command, command.other) if use]
    return "\n".join([*lines, "", "vqjax COMMAND --help lists the flags of a command."])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message}; see {self.prog} --help.")


def _parser(function: Callable[..., Any], program: str, example: str) -> _Parser:
    """A parser of the flags of a function."""
    parameters = inspect.signature(function).parameters.values()
    positional = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_ONLY]
    needed = [
        f"--{parameter.name}=VALUE"
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.kind in _BY_NAME
    ]
    parser = _Parser(
        prog=program,
        usage=" ".join([program, *map(str.upper, positional), *needed, "[--flag=value ...]"]),
        description=inspect.cleandoc(function.__doc__).partition("\nArgs:")[0],
        epilog=f"example:\n  {program} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    described = _descriptions(function)
    for flag, field in Call(function).fields.items():
        # A boolean flag alone turns it on.
        switch = {"nargs": "?", "const": "true"} if field.kind.types == {bool} else {}
        if flag in positional:
            parser.add_argument(flag, metavar=flag.upper(), help=described.get(flag))
        else:
            parser.add_argument(f"--{flag}", metavar="VALUE", help=described.get(flag), **switch)
    return parser


def _call(function: Callable[..., Any], program: str, example: str, flags: Sequence[str]) -> None:
    """Call a function with its parameters as flags; one with ``*args`` gets those that begin with ``--config.``."""
    group = Call(function)
    parameters = inspect.signature(function).parameters.values()
    given, others = _parser(function, program, example).parse_known_args(flags)
    takes_others = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
    for other in others:
        if not other.startswith("--"):
            raise UserError(f"argument {other!r} is not expected; write --name=value.")
        if not (takes_others and other.startswith("--config.")):
            flag = other.partition("=")[0]
            raise UserError(f"{flag} is unknown; {did_you_mean(flag, [f'--{name}' for name in group.fields])}")
    try:
        values = group.defaults()
        for flag, text in vars(given).items():
            values = group.override(values, flag, text)
        group.check_given(values)
    except UserError as error:
        raise UserError(f"--{error}") from error
    enable_compilation_cache()
    kinds = {inspect.Parameter.POSITIONAL_ONLY}
    if takes_others:
        # What stands before ``*args`` can only be given by its place.
        kinds.add(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    leading = [values.pop(parameter.name) for parameter in parameters if parameter.kind in kinds]
    function(*leading, *others, **values)


def _descriptions(function: Callable[..., Any]) -> dict[str, str]:
    """The text of each argument in a docstring's section ``Args:``."""
    section = re.search(r"^Args:\n((?:  .*\n?)*)", inspect.cleandoc(function.__doc__), re.MULTILINE)
    entries = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.replace("``", "").replace("%", "%%").split()) for name, text in entries}


def train_command(
    *overrides: str,
    config: str | None = None,
    workdir: str = "runs/quickstart",
    distributed: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Train a model, or resume the run in ``workdir``.

    Without flags it trains on bundled photographs for two to three minutes. Every field of the config is a flag:
    --config.FIELD=VALUE and --config.GROUP.FIELD=VALUE, where None disables an optional argument.

    Args:
      *overrides: Changes of the config, as ``--config.field=value``.
      config: Config file, or the name of one that comes with the package (cifar10, imagenette, ...), with its arguments
        after a colon; by default the config of the run in ``workdir``, and quickstart for a new run.
      workdir: Directory of checkpoints, metrics and pictures, or its URL; runs/quickstart by default.
      distributed: Join the other processes that Slurm, Open MPI or Kubernetes has started (docs/long-runs.md).
      coordinator_address: Elsewhere, to join others: HOST:PORT of process 0.
      num_processes: Elsewhere: the number of processes.
      process_id: Elsewhere: the number of this process, from 0.
    """
    # The trainer loads in seconds, which help and mistakes in flags need not wait for.
    from vqjax.checkpointing.discovery import find_checkpoint
    from vqjax.runtime.processes import join_if_asked
    from vqjax.runtime.remote import local_copy
    from vqjax.runtime.workdir import usable_workdir
    from vqjax.training.config import complete, load_config, override_all
    from vqjax.training.loop import train

    run = None if config is None else load_config(config, overrides)
    join_if_asked(distributed, coordinator_address, num_processes, process_id)
    # Around both, so that storage elsewhere is copied once.
    with local_copy(workdir, "--workdir") as (directory, _):
        if run is None:
            # Only now, as all processes must find the same checkpoint.
            found = find_checkpoint(usable_workdir(directory))
            run = override_all(complete(found.config), overrides) if found else load_config("quickstart", overrides)
        train(run, workdir)


if __name__ == "__main__":
    main()
