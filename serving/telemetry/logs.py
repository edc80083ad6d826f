"""The server's log: one line per event, as text to read or as JSON to collect.

A line contains time (UTC), level and event, then the event's fields, such as model, version, signature, status,
milliseconds and peer.
"""

import json
import logging
import sys
import time

LOGGER = logging.getLogger("serving")


def log_event(level: int, event: str, fields: dict[str, object], error: BaseException | None = None) -> None:
    """Log an event with its fields, and the traceback of `error` if there is one."""
    LOGGER.log(level, event, extra={"fields": fields}, exc_info=error)


def start_log(log_format: str) -> None:
    """Send the log and the warnings of libraries to stderr; `log_format` is text or json."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATS[log_format]())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    LOGGER.setLevel(logging.INFO)
    # TensorFlow's warnings concern the functions that this package calls, which a user cannot change.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def _fields(record: logging.LogRecord, formatter: logging.Formatter) -> dict[str, object]:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    fields = {"time": f"{stamp}.{record.msecs:03.0f}Z", "level": record.levelname.lower(), "event": record.getMessage()}
    # Records of libraries have no fields.
    fields |= getattr(record, "fields", {})
    if record.exc_info:
        fields["traceback"] = formatter.formatException(record.exc_info)
    return fields


class Text(logging.Formatter):
    """Format records as TIME LEVEL EVENT NAME=VALUE ...; values with spaces are quoted."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record, self)
        head = " ".join(str(fields.pop(name)) for name in ("time", "level", "event"))
        traceback = fields.pop("traceback", None)
        line = " ".join([head, *(f"{name}={_quoted(value)}" for name, value in fields.items())])
        return f"{line}\n{traceback}" if traceback else line


class Json(logging.Formatter):
    """Format records as one JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_fields(record, self), default=str)


FORMATS = {"text": Text, "json": Json}


def _quoted(value: object) -> str:
    text = str(value)
    # A client can cause a message with line breaks, which must not look like lines of the log.
    plain = text and text.isprintable() and not set(text) & set(' "=')
    return text if plain else json.dumps(text, ensure_ascii=False)
