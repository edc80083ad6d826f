"""Assemble the server: models, batching, admission, monitoring and the listeners."""

import logging
import threading
import time

from kseg.errors import UserError
from serving.config.flags import Options
from serving.telemetry import logs

# Requests that wait in a batch hold a place to run; how many run and wait is up to the batches' threads and queues.
BATCHED = 256


class Server:
    """The models of the options, and what answers for them; `start` first, `stop` at the end."""

    def __init__(self, options: Options):
        """Raises UserError for configuration that cannot be read, ServingError for what contradicts itself."""
        from serving.config import files
        from serving.core import loading, manager, versions
        from serving.core.admission import AdmissionControl
        from serving.core.batching import Scheduler
        from serving.grpc_api.services import Backend
        from serving.telemetry.monitoring import Monitor

        files.check_options(options)
        self.options = options
        self._config = files.read_model_config(options)
        self._monitor = Monitor()
        batching = files.read_batching(options)
        self._scheduler = None if batching is None else Scheduler(batching, self._monitor)
        self.models = manager.ModelManager(
            versions.VersionSettings(
                poll_seconds=options.file_system_poll_wait_seconds, load_retries=options.max_num_load_retries,
                retry_seconds=options.load_retry_interval_micros / 1e6, load_threads=options.num_load_threads,
                unload_threads=options.num_unload_threads,
                allow_unavailable_labels=options.allow_version_labels_for_unavailable_models),
            loading.make_loader(options, self._scheduler, self._monitor),
            on_loaded=self._loaded, on_unloaded=self._unloaded)
        self._running = options.max_running_requests or max(
            options.grpc_max_threads, 0 if batching is None else BATCHED)
        self._parts = Backend(self.models, self._monitor, AdmissionControl(
            self._running, options.max_waiting_requests, options.max_waiting_bytes, self._monitor.queue))
        self._grpc = self._rest = None
        self._stopping, self._stopped = threading.Event(), threading.Event()
        # Which ports it answers on, once started; 0: none.
        self.grpc_port, self.rest_port = 0, 0

    def start(self) -> None:
        """Load the models and then listen; raises UserError or ServingError where either fails."""
        from serving import listeners

        options = self.options
        rest = options.rest_api_port
        if rest > 0 and rest == options.port:
            logs.log_event(logging.ERROR, "no REST", {
                           "message": "--rest_api_port is --port: each needs one of its own"})
            rest = 0
        try:
            for port in filter(None, (options.port, rest)):
                listeners.check_free(options.host, port)
            self.models.start(self._config)
            if options.port or options.grpc_socket_path:
                self._grpc = listeners.Grpc(options, self._parts, self._running + options.max_waiting_requests)
                self.grpc_port = self._grpc.port
            if rest:
                self._rest = listeners.Rest(options, self._application())
                self.rest_port = self._rest.port
                self._rest.start()
            if self._grpc:
                self._grpc.start()
        except BaseException:
            self.stop(grace_seconds=0)
            raise
        if options.model_config_file and options.model_config_file_poll_wait_seconds > 0:
            threading.Thread(target=self._poll_config, name="config", daemon=True).start()
        logs.log_event(logging.INFO, "started", {"grpc_port": self.grpc_port, "rest_port": self.rest_port,
                                                 "grpc_socket_path": options.grpc_socket_path})

    def stop(self, drain_seconds: float = 0, grace_seconds: float | None = None) -> None:
        """End the server: unhealthy but answering for `drain_seconds`, then what runs is waited for, then no models.

        `grace_seconds` is how long it is waited for; None: as the options say. Called again, it waits for the first.
        """
        if self._stopping.is_set():
            self._stopped.wait()
            return
        self._stopping.set()
        grace = self.options.grace_seconds if grace_seconds is None else grace_seconds
        if self._grpc:
            self._grpc.drain()
        if drain_seconds:
            logs.log_event(logging.INFO, "draining", {"seconds": drain_seconds})
            self._stopped.wait(drain_seconds)
        ended = self._grpc.stop(grace) if self._grpc else None
        if self._rest:
            self._rest.stop()
        if ended:
            ended.wait()
        self.models.stop()
        if self._scheduler:
            self._scheduler.stop()
        logs.log_event(logging.INFO, "stopped", {})
        self._stopped.set()

    def wait(self) -> None:
        """Return when the server has been stopped."""
        self._stopped.wait()

    def describe(self) -> str:
        """Return what is served and where, for a person."""
        from tensorflow_serving.apis import model_pb2

        from serving.errors import ServingError

        lines = []
        for name in self.models.names():
            try:
                with self.models.use(model_pb2.ModelSpec(name=name)) as handle:
                    names = sorted(key for key in handle.model.signatures if not key.startswith("__"))
                    lines.append(f"serving {name}, version {handle.version} of {handle.model.directory.parent}: "
                                 f"{', '.join(names)}")
            except ServingError as error:
                lines.append(f"not serving {name}: {error.message}")
        host = f"[{self.options.host}]" if ":" in self.options.host else self.options.host
        if self.grpc_port:
            lines.append(f"gRPC at {host}:{self.grpc_port}{', by TLS' if self.options.ssl_config_file else ''}")
        if self.options.grpc_socket_path:
            lines.append(f"gRPC at unix:{self.options.grpc_socket_path}")
        if self.rest_port:
            lines.append(f"REST at http://{host}:{self.rest_port}/v1/models/NAME"
                         f"{f', a page at http://{host}:{self.rest_port}/' if self.options.page else ''}")
        return "\n".join([*lines, "Ctrl-C or SIGTERM ends it"])

    def _application(self):
        from serving.rest_api import app, page

        return app.application(self.models, self._monitor, self._parts.admission, self.options,
                               extra_routes=page.routes(self.models, self.options))

    def _loaded(self, name: str, version: int, failure: Exception | None, seconds: float) -> None:
        self._monitor.loaded(name, version, failure is None, seconds)
        fields = {"model": name, "version": version, "milliseconds": round(1000 * seconds, 2)}
        if failure is None:
            logs.log_event(logging.INFO, "loaded", fields)
        else:
            logs.log_event(logging.ERROR, "load failed", fields | {"message": str(failure)})

    def _unloaded(self, name: str, version: int) -> None:
        self._monitor.unloaded(name, version)
        logs.log_event(logging.INFO, "unloaded", {"model": name, "version": version})

    def _poll_config(self) -> None:
        """Read the models' file again and again; whatever is wrong with it, the models stay as they are."""
        import grpc

        from serving.config import files
        from serving.errors import ServingError

        said, seconds = "", self.options.model_config_file_poll_wait_seconds
        while not self._stopping.wait(seconds):
            try:
                # New models are waited for only so long: whoever mends the base path of one is to be read, too.
                self.models.reload(files.read_model_config(self.options), time.monotonic() + seconds)
                said = ""
            except (UserError, ServingError) as error:
                if isinstance(error, ServingError) and error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                    logs.log_event(logging.WARNING, "reload goes on", {"message": error.message})
                    continue
                # Once, and not every second until somebody mends it.
                if str(error) != said:
                    logs.log_event(logging.ERROR, "reload failed", {"message": str(error)})
                said = str(error)
