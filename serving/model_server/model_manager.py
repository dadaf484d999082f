"""Keeps the loaded models in step with those on disk, with no gap in serving."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from serving.model_server.status import ServingError, invalid
from serving.model_server.versions import ModelConfig, list_versions
from serving.runtime.steady_thread import SteadyThread

log = logging.getLogger(__name__)
# Between two looks of a loader at what is left to do, where the disk is looked at only once.
_PAUSE_SECONDS = 1.0


class Servable(Protocol):
    """The interface of what the manager loads."""

    def close(self) -> None:
        """Free its memory."""


@dataclass
class VersionStatus:
    """State of one version, as the status API reports it.

    Attributes:
        version: The version's number.
        state: ``START``, ``LOADING``, ``AVAILABLE``, ``UNLOADING`` or ``END``.
        error: Why a load failed for good; None when all is well.
    """

    version: int
    state: str
    error: ServingError | None = None


class _Version:
    """One version's life: loads, is used by requests, is unloaded after the last of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = "START"
        self.error: ServingError | None = None
        self.servable: Servable | None = None
        self.users = 0
        self.attempts = 0
        self.next_attempt = 0.0

    @property
    def failed(self) -> bool:
        return self.state == "END" and self.error is not None


class ModelManager:
    """Loads new versions, swaps them in when they are ready, and unloads old ones.

    One thread looks at the disk for all models; each model has a thread that loads and unloads
    its versions, so that a slow model holds up no other, and nothing is loaded or freed by a
    thread that serves. None of these threads is ended by an exception.

    A version that fails to load leaves the one before it in place. Its load is tried again
    ``max_retries`` times; after that its number is never tried again in this process, as in
    TensorFlow Serving: publish under a new number, and publish by rename.

    Args:
        models: The models to serve; their names are distinct.
        load: Makes a servable of a version directory.
        poll_seconds: Time between two looks at the disk; 0 looks once.
        max_retries: Further attempts at a failing load.
        retry_seconds: Time between two of them.
    """

    def __init__(
        self,
        models: Sequence[ModelConfig],
        load: Callable[[Path], Servable],
        poll_seconds: float = 1.0,
        max_retries: int = 5,
        retry_seconds: float = 60.0,
    ) -> None:
        self._models = list(models)
        self._load = load
        self._poll_seconds = poll_seconds
        self._max_retries = max_retries
        self._retry_seconds = retry_seconds
        self._versions: dict[str, dict[int, _Version]] = {model.name: {} for model in models}
        self._aspired: dict[str, list[int]] = {}
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._last_warning: dict[str, float] = {}
        self._looked = False
        pause = poll_seconds or _PAUSE_SECONDS
        self._discovery = SteadyThread("model-discovery", self._look_at_disk, pause)
        self._loaders = {
            model.name: SteadyThread(f"loader-{model.name}", partial(self._step, model), pause)
            for model in models
        }

    def start(self) -> None:
        """Start the threads that poll the disk and load models."""
        self._discovery.start()
        for loader in self._loaders.values():
            loader.start()

    def stop(self) -> None:
        """Stop polling, then unload every version that no request uses."""
        self._stopping.set()
        threads = [self._discovery, *self._loaders.values()]
        for thread in threads:
            thread.ask_to_stop()
        for thread in threads:
            thread.stop()
        for versions in self._versions.values():
            for version in list(versions.values()):
                self._unload(version)
                self._close_unused(version)

    @property
    def thread_failures(self) -> int:
        """Number of unexpected exceptions that the threads survived."""
        return sum(thread.failures for thread in (self._discovery, *self._loaders.values()))

    def wait_until_available(self, timeout: float | None = None) -> bool:
        """Wait until the newest version of every model is available; False after the timeout.

        Raises:
            ServingError: A model's newest version failed for good.
        """
        with self._changed:
            return self._changed.wait_for(self._all_available, timeout)

    @contextmanager
    def use(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> Iterator[tuple[int, Servable]]:
        """Hold a version while a request runs on it.

        Yields:
            The version's number and its servable.

        Raises:
            ServingError: There is no such model, version or label.
        """
        if label:
            version = self._labelled(name, label)
        with self._changed:
            number, held = self._find(name, version)
            held.users += 1
        try:
            assert held.servable is not None
            yield number, held.servable
        finally:
            with self._changed:
                held.users -= 1
                unused = held.state == "UNLOADING" and held.users == 0
            if unused:
                self._loaders[name].wake()
                if self._stopping.is_set():
                    self._close_unused(held)

    def statuses(self, name: str, version: int | None = None) -> list[VersionStatus]:
        """States of all versions ever seen, newest first, or of the one asked for.

        Raises:
            ServingError: Nothing is known of the model or version.
        """
        with self._changed:
            known = {
                number: VersionStatus(number, entry.state, entry.error)
                for number, entry in self._versions.get(name, {}).items()
            }
        if version is not None:
            if version not in known:
                raise ServingError("NOT_FOUND", f"Could not find version {version} of model {name}")
            return [known[version]]
        if not known:
            raise ServingError("NOT_FOUND", f"Could not find any versions of model {name}")
        return [known[number] for number in sorted(known, reverse=True)]

    def _labelled(self, name: str, label: str) -> int:
        for model in self._models:
            if model.name == name and label in model.labels:
                return model.labels[label]
        raise invalid(f"Unrecognized servable version label: {label}")

    def _find(self, name: str, version: int | None) -> tuple[int, _Version]:
        available = {
            number: entry
            for number, entry in self._versions.get(name, {}).items()
            if entry.state == "AVAILABLE"
        }
        if version is None and available:
            version = max(available)
        if version is None or version not in available:
            asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise ServingError("NOT_FOUND", f"Servable not found for request: {asked}")
        return version, available[version]

    def _all_available(self) -> bool:
        failed = []
        for model in self._models:
            aspired = self._aspired.get(model.name)
            if not aspired:
                return False
            newest = self._versions[model.name][aspired[0]]
            if newest.failed:
                failed.append(
                    f"{{{{name: {model.name} version: {aspired[0]}}} due to error: {newest.error}}}"
                )
            elif newest.state != "AVAILABLE":
                return False
        if failed:
            raise ServingError(
                "UNKNOWN",
                f"{len(failed)} servable(s) did not become available: {{{', '.join(failed)}, }}",
            )
        return True

    def _look_at_disk(self) -> None:
        if self._looked and not self._poll_seconds:
            return
        for model in self._models:
            try:
                on_disk = list_versions(model.base_path)
            except OSError as error:
                # Its versions stay up; the other models are looked for all the same.
                self._warn(
                    f"Could not find base path {model.base_path} for servable {model.name} "
                    f"({error.strerror}); waiting for it to appear",
                )
                continue
            aspired = model.policy.choose(on_disk)
            if not aspired:
                self._warn(
                    f"No versions of servable {model.name} found under base path "
                    f"{model.base_path}; waiting for {model.base_path}/<number>/saved_model.pb",
                )
            for missing in sorted(set(model.policy.specific) - set(on_disk)):
                self._warn(
                    f"Version {missing} of servable {model.name}, which was requested to be "
                    f"served, was not found under base path {model.base_path}",
                )
            with self._changed:
                versions = self._versions[model.name]
                for number in aspired:
                    known = versions.get(number)
                    if known is None or (known.state == "END" and known.error is None):
                        versions[number] = _Version(on_disk[number])
                changed = self._aspired.get(model.name) != aspired
                self._aspired[model.name] = aspired
                self._changed.notify_all()
            if changed:
                self._loaders[model.name].wake()
        self._looked = True

    def _step(self, model: ModelConfig) -> None:
        """Load wanted versions, newest first, then unload unneeded ones."""
        with self._changed:
            versions = dict(self._versions[model.name])
            aspired = self._aspired.get(model.name)
        if aspired is None:
            return
        for number in aspired:
            entry = versions[number]
            if self._stopping.is_set():
                return
            if entry.state in ("START", "LOADING") and entry.next_attempt <= time.monotonic():
                self._try_load(model, number, entry)
        ready = any(versions[number].state == "AVAILABLE" for number in aspired)
        for number, entry in versions.items():
            if number not in aspired:
                if entry.state == "AVAILABLE" and (ready or not aspired):
                    log.info("Unloading {name: %s version: %d}", model.name, number)
                    self._unload(entry)
                elif entry.state in ("START", "LOADING"):
                    unwanted = ServingError("CANCELLED", "Version is no longer wanted")
                    self._set(entry, "END", entry.error or unwanted)
            self._close_unused(entry)

    def _try_load(self, model: ModelConfig, number: int, entry: _Version) -> None:
        self._set(entry, "LOADING")
        entry.attempts += 1
        started = time.monotonic()
        try:
            servable = self._load(entry.path)
        except ServingError as error:
            self._failed(model, number, entry, error)
            return
        except Exception as error:  # any other fault of one model must not stop the others
            log.exception("Loading {name: %s version: %d} failed", model.name, number)
            self._failed(model, number, entry, ServingError("UNKNOWN", str(error)))
            return
        entry.servable = servable
        self._set(entry, "AVAILABLE")
        log.info(
            "Successfully loaded servable version {name: %s version: %d} in %.1f s",
            model.name,
            number,
            time.monotonic() - started,
        )

    def _failed(
        self, model: ModelConfig, number: int, entry: _Version, error: ServingError
    ) -> None:
        last = entry.attempts > self._max_retries
        log.error(
            "Loading servable: {name: %s version: %d} failed: %s; %s",
            model.name,
            number,
            error,
            "given up, publish under a new number"
            if last
            else f"next attempt in {self._retry_seconds:g} s",
        )
        if last:
            self._set(entry, "END", error)
        else:
            entry.next_attempt = time.monotonic() + self._retry_seconds

    def _unload(self, entry: _Version) -> None:
        """Stop giving it to requests."""
        with self._changed:
            if entry.state == "AVAILABLE":
                entry.state = "UNLOADING"

    def _close_unused(self, entry: _Version) -> None:
        """Free an unloading version that no request holds."""
        with self._changed:
            if entry.state != "UNLOADING" or entry.users or entry.servable is None:
                return
            servable, entry.servable = entry.servable, None
        try:
            servable.close()
        finally:
            self._set(entry, "END")

    def _set(self, entry: _Version, state: str, error: ServingError | None = None) -> None:
        with self._changed:
            entry.state = state
            entry.error = error
            self._changed.notify_all()

    def _warn(self, message: str) -> None:
        """Warn at once, then every five seconds for as long as it holds."""
        now = time.monotonic()
        if now - self._last_warning.get(message, -5.0) >= 5.0:
            self._last_warning[message] = now
            log.warning("%s", message)
