"""The format of log lines, as text and as JSON."""

import json
import logging

from serving.telemetry import logs


def formatted(formatter, fields, level=logging.INFO, error=None):
    record = logging.LogRecord("serving", level, "file", 1, "request", (), error and (type(error), error, None))
    record.created, record.msecs, record.fields = 0.25, 250, fields
    return formatter().format(record)


def test_log_lines_as_text_and_json():
    fields = {
        "model": "half",
        "version": 3,
        "status": "OK",
        "message": 'two\nlines and "quotes"',
        "peer": "ipv4:1.2.3.4:5",
    }
    head = "1970-01-01T00:00:00.250Z info request"
    assert formatted(logs.Text, fields) == (
        head + r' model=half version=3 status=OK message="two\nlines and \"quotes\"" peer=ipv4:1.2.3.4:5'
    )
    assert (
        json.loads(formatted(logs.Json, fields))
        == {"time": "1970-01-01T00:00:00.250Z", "level": "info", "event": "request"} | fields
    )
    assert "\n" not in formatted(logs.Json, fields, logging.ERROR, ValueError("broken"))
    assert formatted(logs.Text, {}, logging.ERROR, ValueError("broken")).splitlines()[1:] == ["ValueError: broken"]
    # A record of a library has no fields.
    plain = logging.LogRecord("other", logging.WARNING, "file", 1, "said %s", ("this",), None)
    assert json.loads(logs.Json().format(plain))["event"] == "said this"
