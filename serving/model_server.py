"""Assemble the server: models, batching, admission control, monitoring and the listeners.

TensorFlow is imported when a Server has read its configuration files, so that their mistakes are reported at once.
"""

import logging
import threading
import time
from typing import TYPE_CHECKING

from kseg.errors import UserError
from kseg.system import quiet_start
from serving.config.flags import Options
from serving.telemetry import logs

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from serving.errors import ServingError

# Requests that wait for their batch hold a slot. With batching, the slots must not limit the batches.
BATCHING_SLOTS = 256


class Server:
    """A server of models; call `start` once, then `stop`.

    Attributes:
        models: The ModelManager.
        grpc_port: The gRPC port after `start`, 0 if there is none.
        rest_port: The REST port after `start`, 0 if there is none.
    """

    def __init__(self, options: Options):
        """Read the configuration files.

        Raises UserError for a file that cannot be read, ServingError for contradicting options.
        """
        from serving.config import files

        files.check_options(options)
        self.options = options
        self._config = files.read_model_config(options)
        batching = files.read_batching(options)
        # At its default log level TensorFlow reports every failed request, which the server's log does itself.
        quiet_start.import_tensorflow()
        from serving.core import loading, manager, versions
        from serving.core.admission import AdmissionControl
        from serving.core.batching import Scheduler
        from serving.grpc_api.services import Backend
        from serving.telemetry.monitoring import Monitor

        self._monitor = Monitor()
        self._scheduler = None if batching is None else Scheduler(batching, self._monitor)
        self.models = manager.ModelManager(
            versions.VersionSettings(
                poll_seconds=options.file_system_poll_wait_seconds,
                load_retries=options.max_num_load_retries,
                retry_seconds=options.load_retry_interval_micros / 1e6,
                load_threads=options.num_load_threads,
                unload_threads=options.num_unload_threads,
                allow_unavailable_labels=options.allow_version_labels_for_unavailable_models,
            ),
            loading.make_loader(options, self._scheduler, self._monitor),
            on_loaded=self._on_loaded,
            on_unloaded=self._on_unloaded,
        )
        self._max_running = options.max_running_requests or max(
            options.grpc_max_threads, 0 if batching is None else BATCHING_SLOTS
        )
        self._backend = Backend(
            self.models,
            self._monitor,
            AdmissionControl(
                self._max_running, options.max_waiting_requests, options.max_waiting_bytes, self._monitor.queue
            ),
        )
        self._grpc = self._rest = None
        self._stopping, self._stopped = threading.Event(), threading.Event()
        self.grpc_port, self.rest_port = 0, 0

    def start(self) -> None:
        """Load the models, then listen; raises UserError or ServingError if either fails."""
        from serving import listeners

        options = self.options
        rest_port = options.rest_api_port
        if rest_port > 0 and rest_port == options.port:
            logs.log_event(
                logging.ERROR,
                "REST disabled",
                {"message": "--rest_api_port equals --port: gRPC and REST need different ports"},
            )
            rest_port = 0
        try:
            for port in filter(None, (options.port, rest_port)):
                listeners.check_port(options.host, port)
            self.models.start(self._config)
            if options.port or options.grpc_socket_path:
                self._grpc = listeners.Grpc(options, self._backend, self._max_running + options.max_waiting_requests)
                self.grpc_port = self._grpc.port
            if rest_port:
                self._rest = listeners.Rest(options, self._rest_application())
                self.rest_port = self._rest.port
                self._rest.start()
            if self._grpc:
                self._grpc.start()
        except BaseException:
            self.stop(grace_seconds=0)
            raise
        if options.model_config_file and options.model_config_file_poll_wait_seconds > 0:
            threading.Thread(target=self._poll_config, name="config", daemon=True).start()
        logs.log_event(
            logging.INFO,
            "started",
            {"grpc_port": self.grpc_port, "rest_port": self.rest_port, "grpc_socket_path": options.grpc_socket_path},
        )

    def stop(self, drain_seconds: float = 0, grace_seconds: float | None = None) -> None:
        """Stop the server; a second call waits for the first one.

        Args:
            drain_seconds: How long to keep answering while health checks report NOT_SERVING.
            grace_seconds: How long to wait for running requests after that; None: the value in the options.
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
        grpc_ended = self._grpc.stop(grace) if self._grpc else None
        if self._rest:
            self._rest.stop()
        if grpc_ended:
            grpc_ended.wait()
        self.models.stop()
        if self._scheduler:
            self._scheduler.stop()
        logs.log_event(logging.INFO, "stopped", {})
        self._stopped.set()

    def wait(self) -> None:
        """Wait until the server is stopped."""
        self._stopped.wait()

    def describe(self) -> str:
        """Return a text for the terminal: the served models and the addresses."""
        from tensorflow_serving.apis import model_pb2

        from serving.errors import ServingError

        lines = []
        for name in self.models.names():
            try:
                with self.models.use(model_pb2.ModelSpec(name=name)) as handle:
                    names = sorted(key for key in handle.model.signatures if not key.startswith("__"))
                    lines.append(
                        f"serving {name}, version {handle.version} of {handle.model.directory.parent}: "
                        f"{', '.join(names)}"
                    )
            except ServingError as error:
                lines.append(f"not serving {name}: {error.message}")
        host = f"[{self.options.host}]" if ":" in self.options.host else self.options.host
        if self.grpc_port:
            lines.append(f"gRPC at {host}:{self.grpc_port}{', over TLS' if self.options.ssl_config_file else ''}")
        if self.options.grpc_socket_path:
            lines.append(f"gRPC at unix:{self.options.grpc_socket_path}")
        if self.rest_port:
            lines.append(
                f"REST at http://{host}:{self.rest_port}/v1/models/NAME"
                f"{f', a page at http://{host}:{self.rest_port}/' if self.options.page else ''}"
            )
        return "\n".join([*lines, "press Ctrl-C or send SIGTERM to stop the server"])

    def _rest_application(self) -> "Starlette":
        from serving.rest_api import app, page

        return app.application(
            self.models,
            self._monitor,
            self._backend.admission,
            self.options,
            extra_routes=page.routes(self.models, self.options),
        )

    def _on_loaded(self, name: str, version: int, failure: "ServingError | None", seconds: float) -> None:
        self._monitor.loaded(name, version, failure is None, seconds)
        fields = {"model": name, "version": version, "milliseconds": round(1000 * seconds, 2)}
        if failure is None:
            logs.log_event(logging.INFO, "loaded", fields)
        else:
            logs.log_event(logging.ERROR, "load failed", fields | {"message": str(failure)})

    def _on_unloaded(self, name: str, version: int) -> None:
        self._monitor.unloaded(name, version)
        logs.log_event(logging.INFO, "unloaded", {"model": name, "version": version})

    def _poll_config(self) -> None:
        """Reload the file of models at its interval; a mistake in it changes nothing."""
        import grpc

        from serving.config import files
        from serving.errors import ServingError

        logged, seconds = "", self.options.model_config_file_poll_wait_seconds
        while not self._stopping.wait(seconds):
            try:
                # The deadline matters for a new model without a version: its base path may be corrected in the file,
                # which is read again only after the wait.
                self.models.reload(files.read_model_config(self.options), time.monotonic() + seconds)
                logged = ""
            except (UserError, ServingError) as error:
                if isinstance(error, ServingError) and error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                    logs.log_event(logging.WARNING, "reload continues", {"message": error.message})
                    continue
                # Log a mistake once, not at every interval until it is corrected.
                if str(error) != logged:
                    logs.log_event(logging.ERROR, "reload failed", {"message": str(error)})
                logged = str(error)
