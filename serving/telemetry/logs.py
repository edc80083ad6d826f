"""The server's log: one line an event, as text to read or as JSON to collect.

A line holds time (UTC), level and event, then what belongs to it: model, version, signature, status, milliseconds,
peer.
"""

import json
import logging
import sys
import time

LOGGER = logging.getLogger("serving")


def write(level: int, event: str, fields: dict[str, object], error: BaseException | None = None) -> None:
    """Log an event; with `error` its traceback too. `level` is one of logging's."""
    LOGGER.log(level, event, extra={"fields": fields}, exc_info=error)


def start(log_format: str) -> None:
    """Send the log to stderr as `log_format`, text or json; warnings of the libraries too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATS[log_format]())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    LOGGER.setLevel(logging.INFO)
    # Its warnings are of what this package calls, and of nothing that who runs it can change.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def _fields(record: logging.LogRecord, formatter: logging.Formatter) -> dict[str, object]:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    fields = {"time": f"{stamp}.{record.msecs:03.0f}Z", "level": record.levelname.lower(), "event": record.getMessage()}
    # Records of the libraries have none.
    fields |= getattr(record, "fields", {})
    if record.exc_info:
        fields["traceback"] = formatter.formatException(record.exc_info)
    return fields


class Text(logging.Formatter):
    """A line of TIME LEVEL EVENT NAME=VALUE ...; values with blanks are quoted."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record, self)
        head = " ".join(str(fields.pop(name)) for name in ("time", "level", "event"))
        traceback = fields.pop("traceback", None)
        line = " ".join([head, *(f"{name}={_quoted(value)}" for name, value in fields.items())])
        return f"{line}\n{traceback}" if traceback else line


class Json(logging.Formatter):
    """A line holding one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_fields(record, self), default=str)


FORMATS = {"text": Text, "json": Json}


def _quoted(value: object) -> str:
    text = str(value)
    # A line break of a message a client caused shall not look like a line of the log.
    plain = text and text.isprintable() and not set(text) & set(' "=')
    return text if plain else json.dumps(text, ensure_ascii=False)
