"""Log records with a chosen time, for handlers that are tested alone."""

import logging

from cluster.console.events import Event
from cluster.console.log import LOG


def record_of(message: str | Event, *, at: float) -> logging.LogRecord:
    """A record of the `userrl` logger, made at this time (seconds since 1970)."""
    record = LOG.makeRecord(LOG.name, logging.INFO, "", 0, message, (), None)
    record.created = at
    return record
