"""What the attacks share: starting a tool, and the words in which a result is given."""

import concurrent.futures
import os
import subprocess
import sys
from collections import namedtuple

# Longer than any tool takes by itself; one that hangs is stopped, and its arrivals are judged all the same.
PATIENCE = 240

# `found` is a list of sentences: nothing in it, nothing wrong.
Result = namedtuple("Result", "what cases outcome found")


class Absent(Exception):
    """Why a tool cannot run here."""


def started(command, folder, **environment):
    """Runs a tool to its end in `folder`; what it said. Its own verdict is for people to read."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, timeout=PATIENCE, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except subprocess.TimeoutExpired as error:
        return (error.stdout or b"").decode("utf-8", "replace") + "\n(stopped)"
    said = done.stdout.decode("utf-8", "replace")
    if "ModuleNotFoundError" in said:
        raise Absent(said.strip().splitlines()[-1])
    return said


def python(*arguments):
    return [sys.executable, *map(str, arguments)]


def at_once(*calls, workers=16):
    """The results of (function, argument...), run side by side."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=workers) as pool:
        return [future.result() for future in [pool.submit(*call) for call in calls]]
