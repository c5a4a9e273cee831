"""Completion of the command ``vqjax`` in bash and zsh."""

import inspect

from vqjax.runtime.signature import Call
from vqjax.training.cli import COMMANDS, Command
from vqjax.training.config import recipes

_SCRIPT = """\
# Completion of vqjax in bash and zsh, written by `vqjax completion`.
[ -n "${{ZSH_VERSION-}}" ] && autoload -U +X compinit bashcompinit && compinit && bashcompinit
_vqjax() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} flag="" prefix="" words=""
  # bash takes what stands around an equals sign apart, zsh does not.
  case $word in
    =) flag=$before word="" ;;
    --*=*) flag=${{word%%=*}} prefix=$flag= word=${{word#*=}} ;;
    *) [ "$before" = "=" ] && flag=${{COMP_WORDS[COMP_CWORD - 2]}} ;;
  esac
  if [ "$COMP_CWORD" = 1 ]; then
    words="{commands}"
  elif [ "${{COMP_WORDS[1]}} $flag" = "train --config" ]; then
    words="{configs}"
  elif [ -z "$flag" ]; then
    case ${{COMP_WORDS[1]}} in
{flags}
    esac
  fi
  COMPREPLY=($(compgen -P "$prefix" -W "$words" -- "$word"))
  case ${{COMPREPLY[0]-}} in *=) compopt -o nospace 2>/dev/null ;; esac
}}
complete -o default -F _vqjax vqjax
"""


def print_completion() -> None:
    """Print a script that completes commands, their flags, and the configs of the package.

    bash reads it from ~/.local/share/bash-completion/completions/vqjax; in zsh, add ``source FILE`` to ~/.zshrc.
    """
    flags = [f'      {name}) words="{" ".join(_flags(command))}" ;;' for name, command in COMMANDS.items()]
    print(_SCRIPT.format(commands=" ".join(COMMANDS), configs=" ".join(recipes()), flags="\n".join(flags)))


def _flags(command: Command) -> list[str]:
    """The flags of a command, those of its other use as well."""
    functions = [use.imported() for use in (command, command.other) if use]
    names = [
        name
        for function in functions
        for name in Call(function).fields
        if inspect.signature(function).parameters[name].kind is not inspect.Parameter.POSITIONAL_ONLY
    ]
    return [f"--{name}=" for name in dict.fromkeys(names)]
