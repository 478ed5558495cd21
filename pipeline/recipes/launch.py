"""`accelerate launch` for the scheduler: signals reach the stage, and the stage's exit code comes back.

The command itself ends with 1 whatever the stage ended with, and leaves the stage running when it gets SIGTERM.
"""

import signal
import subprocess
import sys

import psutil

from pipeline.runtime.compat import launch_command, launch_command_parser


def main(words: list[str]) -> None:
    """Launch a stage by a config file, and leave with its exit code.

    Args:
        words: options of `accelerate launch`, the stage's file, and the stage's own arguments.
    """
    options = launch_command_parser().parse_args(words)

    def pass_on(number: int, frame: object) -> None:
        for child in psutil.Process().children(recursive=True):
            child.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        launch_command(options)
    except subprocess.CalledProcessError as error:
        raise SystemExit(128 - error.returncode if error.returncode < 0 else error.returncode) from None


if __name__ == "__main__":
    main(sys.argv[1:])
