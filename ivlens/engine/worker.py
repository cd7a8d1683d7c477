"""What does a worker do with a job, wherever it is: piece by piece, with a number of threads that is said?"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ivlens.engine.job import Message
from ivlens.errors import IvlensError, name_fault


@contextmanager
def use_threads(number: int) -> Iterator[None]:
    """Sums depend on the number of threads in their last bits: the same in this process and in workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def next_message(pieces: Iterator[bytes], threads: int) -> Message:
    """Compute the next piece. Whatever the job raises is said, but for what ends the process."""
    try:
        with use_threads(threads):
            piece = next(pieces, None)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # A tokenizer that gives up is no Exception.
        return Message("raised", error=error)
    return Message("done") if piece is None else Message("piece", piece)


def make_portable(message: Message) -> Message:
    """What another process can read: an error that cannot be pickled becomes one that says the same."""
    if message.error is None:
        return message
    error, said = message.error, name_fault(message.error)
    where = "".join(traceback.format_exception(error))
    if said is None:  # A fault of ours: where it happened is lost on the way but for this.
        error.add_note(where)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # Whatever a class of somebody else's does when it is pickled.
        error = RuntimeError(where) if said is None else IvlensError(said)
    return message._replace(error=error)
