"""Answers of reads as frames of the read protocol, ready to be sent."""

import threading

import numpy as np

from seqvault.codec.bundles import bundle
from seqvault.codec.frame_kernel import room_for_answers, write_answers
from seqvault.codec.frames import ANSWER_START
from seqvault.read.kept_room import KeptRoom, holds_little_more
from seqvault.read.planned_read import Reader
from seqvault.read.read_request import ReadRequest

DENSE = 0  # the encoding of these answers
Frames = tuple[np.ndarray, np.ndarray]


class _Rooms(threading.local):
    """What each thread keeps from answer to answer."""

    def __init__(self) -> None:
        self.kept = KeptRoom()


_ROOMS = _Rooms()


def framed_answers(
    reader: Reader, request: ReadRequest, ends: np.ndarray, numbers: np.ndarray
) -> Frames:
    """The answers of several requests that were read together.

    Args:
        reader: of an open store.
        request: all their users, one request's behind the other's.
        ends: int64 [Q], the first user behind those of each.
        numbers: uint64 [Q], of the requests.

    Returns:
        uint8 frames, one behind the other, and int64 [Q] where each ends. The memory is used
        again once nobody holds the frames.
    """
    alone = len(ends) == 1
    ragged = reader.direct_ragged(request, in_frame=alone)
    frames: np.ndarray | None = None
    if ragged is not None:
        layout, lengths, version = ragged.layout, ragged.lengths, ragged.version
        addresses = ragged.starts + ragged.out.__array_interface__["data"][0]
        held = [ragged.out]
        if alone:  # the fields are where they belong, or further behind
            frames = ragged.out
    else:
        found = reader.find(request.users, request)
        lengths, version, columns = reader.ragged_of(found, request)
        layout = found.store.layouts.of(request.names)
        version = np.ascontiguousarray(version)
        held = list(columns.values())
        addresses = bundle(held)[::2].copy()
    if frames is None:
        size = room_for_answers(
            len(ends), len(lengths), int(lengths.sum()), len(layout.names), layout.width,
            len(layout.described),
        )  # fmt: skip
        frames = _ROOMS.kept.take(size)
    frame_ends = np.empty(len(ends), np.int64)
    write_answers(
        addresses, layout.sizes, lengths, version, ends, numbers, ANSWER_START, DENSE,
        layout.described, frames, frame_ends,
    )  # fmt: skip
    held.clear()  # a use: the kernel reads their memory by its address
    end = int(frame_ends[-1]) if len(frame_ends) else 0
    if not holds_little_more(frames, end):  # few of the user's events are before the bound
        frames = frames[:end].copy()
    return frames, frame_ends
