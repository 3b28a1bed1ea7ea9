"""Print a script with which a shell completes commands, options and their values."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator

from t5peft.cli import names

EPILOG = """
Examples:
  bash:  t5peft completion bash > ~/.local/share/bash-completion/completions/t5peft
  zsh:   t5peft completion zsh > ~/.t5peft-completion.zsh, and `source` it in ~/.zshrc
  fish:  t5peft completion fish > ~/.config/fish/completions/t5peft.fish
Print the script again after an update.
"""
# Values that an option does not insist on.
_VALUES = {"--task": names.PRESETS, "--methods": names.METHODS, "--backbone": ("mini",)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``t5peft completion``."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell: %(choices)s")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    print("\n".join(_fish() if args.shell == "fish" else _bash(zsh=args.shell == "zsh")))
    return 0


def _options(command: str) -> list[tuple[str, argparse.Action]]:
    from t5peft.cli import parser_of

    actions = (action for action in parser_of(command)._actions if action.help is not argparse.SUPPRESS)
    return [(name, action) for action in actions for name in action.option_strings if name.startswith("--")]


def _values(name: str, action: argparse.Action) -> tuple[str, ...]:
    return tuple(map(str, action.choices or ())) or _VALUES.get(name, ())


def _bash(*, zsh: bool) -> Iterator[str]:
    """Yield a bash function; zsh runs it by its own emulation."""
    from t5peft.cli import COMMANDS

    if zsh:
        yield "autoload -Uz compinit bashcompinit && compinit && bashcompinit"
    yield "_t5peft() {"
    yield '  local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" words=""'
    yield '  case "${COMP_WORDS[1]} $previous" in'
    for command in COMMANDS:
        for name, action in _options(command):
            if values := _values(name, action):
                yield f'    "{command} {name}") words="{" ".join(values)}" ;;'
    yield "  esac"
    yield "  if [[ $COMP_CWORD -eq 1 ]]; then"
    yield f'    words="{" ".join(COMMANDS)} --help --version"'
    yield "  elif [[ -z $words && $current == -* ]]; then"
    yield '    case "${COMP_WORDS[1]}" in'
    for command in COMMANDS:
        yield f'      {command}) words="{" ".join(name for name, _ in _options(command))}" ;;'
    yield "    esac"
    yield "  fi"
    yield '  COMPREPLY=($(compgen -W "$words" -- "$current"))'
    yield "}"
    yield "complete -o default -F _t5peft t5peft"


def _fish() -> Iterator[str]:
    from t5peft.cli import COMMANDS

    for command, (_, text) in COMMANDS.items():
        yield f"complete -c t5peft -n __fish_use_subcommand -f -a {command} -d {shlex.quote(text)}"
        for name, action in _options(command):
            values = _values(name, action)
            takes = "" if action.nargs == 0 else " -x" if action.choices else " -r"
            listed = f" -a {shlex.quote(' '.join(values))}" if values else ""
            meaning = shlex.quote((action.help or "").partition(";")[0].replace("%%", "%"))
            yield f"complete -c t5peft -n '__fish_seen_subcommand_from {command}' -l {name[2:]}{takes}{listed} -d {meaning}"
