"""Complete copies of a store."""

from dataclasses import replace

from seqvault.disk import item_file, segment
from seqvault.disk.files import Files
from seqvault.memory.store_state import State
from seqvault.progress import Progress


def snapshot(state: State, target: str, progress: Progress) -> None:
    """Copies a merged store to ``target``. The caller holds ``state.merging``
    and ``state.writing_items``, so that no file goes meanwhile.
    """
    files, manifest = state.files, state.manifest
    for folder in ("", "/segments", "/wal", "/items"):
        files.make_directory(target + folder)
    done, total = 0, sum(state.segments[number].size for number in manifest.segments)
    for number in manifest.segments:
        state.check_not_closing()
        _copy(files, segment.path_of(state.path, number), segment.path_of(target, number))
        done += state.segments[number].size
        progress("bytes", done, total)
    for number in manifest.items:
        state.check_not_closing()
        _copy(files, item_file.path_of(state.path, number), item_file.path_of(target, number))
    for folder in ("/segments", "/items"):
        files.sync_names(target + folder)
    replace(manifest, wal_last=0).save(files, target)  # the copy has no log


def _copy(files: Files, old: str, new: str) -> None:
    try:
        files.link(old, new)
    except OSError:
        source = files.open_read(old)
        try:
            files.publish(new, files.pieces(source))
        finally:
            files.close(source)
