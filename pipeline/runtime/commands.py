"""``narlm COMMAND …``: every script of the package as one command that works from any folder.

A command runs its module as ``python -m`` would, so its flags, help, messages and exit codes are those of
the script; nothing is imported before it is chosen.
"""

import contextlib
import io
import re
import runpy
import sys
from collections.abc import Sequence
from typing import NoReturn

from pipeline import __version__
from pipeline.runtime.command_table import COMMANDS, started
from pipeline.runtime.errors import UserError, did_you_mean
from pipeline.runtime.files import packaged
from pipeline.runtime.terminal import show

SHELLS = ("bash", "zsh", "fish")


def main() -> NoReturn:
    """The console script.

    Raises:
        SystemExit: with the command's exit code; 2 where there is no such command.
    """
    from pipeline.runtime.entry import run_and_exit

    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        show(overview())
        raise SystemExit(0)
    if name == "--version":
        print(f"narlm {__version__}")
        raise SystemExit(0)
    if name not in COMMANDS:
        run_and_exit(_unknown, name)
    if name == "completion":
        run_and_exit(_print_completion, rest)
    started.add(name)  # not in _call: the help texts are read through it, also by tests
    _call(name, rest)
    raise SystemExit(0)


def overview() -> str:
    """The commands, one line each."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "narlm COMMAND [flags]: an alignment pipeline for the Hugging Face ecosystem.",
            "",
            *(f"  {name:<{width}}  {command.line}" for name, command in COMMANDS.items()),
            "",
            "narlm COMMAND --help explains one. Packaged configs go by name: narlm dpo --config quickstart/dpo.",
            "Shell completion (or zsh, fish): narlm completion bash >~/.local/share/bash-completion/completions/narlm",
        ]
    )


def _call(name: str, words: Sequence[str]) -> None:
    """Run the command's module as the main one; it leaves with its own exit code."""
    command = COMMANDS[name]
    sys.argv = [f"narlm {name}", *command.words, *words]
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)


def _unknown(name: str) -> NoReturn:
    raise UserError(f"there is no command {name!r}{did_you_mean(name, COMMANDS)}; narlm --help lists them")


def _print_completion(words: Sequence[str]) -> None:
    if len(words) != 1 or words[0] not in SHELLS:
        raise UserError(f"narlm completion takes one of {', '.join(SHELLS)}")
    flags = {name: flags_of(name) for name in COMMANDS if name != "completion"}
    show({"bash": bash, "zsh": zsh, "fish": fish}[words[0]](flags))


def flags_of(name: str) -> list[str]:
    """The flags that a command's help lists."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        _call(name, ["--help"])
    return sorted(set(re.findall(r"^ +(?:-\w, )?--(\w+)", text.getvalue(), flags=re.MULTILINE)) | {"help"})


def bash(flags: dict[str, list[str]]) -> str:
    """The completion script of bash: commands, their flags, packaged configs after ``--config`` and ``run``."""
    cases = "\n".join(
        f"    {name}) words='{' '.join(f'--{flag}' for flag in found)}' ;;" for name, found in flags.items()
    )
    recipes = packaged("*/recipe.yaml")
    configs = [name for name in packaged("*/*.yaml") if name not in recipes]
    return f"""_narlm() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=''
  if [ "$COMP_CWORD" = 1 ]; then
    COMPREPLY=($(compgen -W '{" ".join(COMMANDS)}' -- "$word")); return
  fi
  case "$before" in
    --config) COMPREPLY=($(compgen -W '{" ".join(configs)}' -- "$word") $(compgen -f -- "$word")); return ;;
    run) COMPREPLY=($(compgen -W '{" ".join(recipes)}' -- "$word") $(compgen -f -- "$word")); return ;;
    completion) COMPREPLY=($(compgen -W '{" ".join(SHELLS)}' -- "$word")); return ;;
  esac
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  case "$word" in
    -*) COMPREPLY=($(compgen -W "$words" -- "$word")) ;;
    *) COMPREPLY=($(compgen -f -- "$word")) ;;
  esac
}}
complete -o filenames -F _narlm narlm"""


def zsh(flags: dict[str, list[str]]) -> str:
    """The completion script of zsh, by its reading of bash's."""
    return f"autoload -Uz compinit bashcompinit && compinit && bashcompinit\n{bash(flags)}"


def fish(flags: dict[str, list[str]]) -> str:
    """The completion script of fish."""
    lines = [
        f"complete -c narlm -f -n __fish_use_subcommand -a {name} -d '{command.line}'"
        for name, command in COMMANDS.items()
    ]
    for name, found in flags.items():
        seen = f"'__fish_seen_subcommand_from {name}'"
        lines += [f"complete -c narlm -n {seen} -l {flag}" for flag in found if flag != "config"]
        if "config" in found:
            lines.append(f"complete -c narlm -n {seen} -l config -r -a '{' '.join(packaged('*/*.yaml'))}'")
    lines.append(f"complete -c narlm -n '__fish_seen_subcommand_from run' -a '{' '.join(packaged('*/recipe.yaml'))}'")
    lines.append(f"complete -c narlm -f -n '__fish_seen_subcommand_from completion' -a '{' '.join(SHELLS)}'")
    return "\n".join(lines)
