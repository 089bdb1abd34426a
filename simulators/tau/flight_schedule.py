"""Flight schedule of the airline: flights and connections that can be booked on a day. Read-only."""

import json
from collections.abc import Iterator

from simulators.tau.database import Database, Record

AIRPORTS = {
    "SFO": "San Francisco",
    "JFK": "New York",
    "LAX": "Los Angeles",
    "ORD": "Chicago",
    "DFW": "Dallas",
    "DEN": "Denver",
    "SEA": "Seattle",
    "ATL": "Atlanta",
    "MIA": "Miami",
    "BOS": "Boston",
    "PHX": "Phoenix",
    "IAH": "Houston",
    "LAS": "Las Vegas",
    "MCO": "Orlando",
    "EWR": "Newark",
    "CLT": "Charlotte",
    "MSP": "Minneapolis",
    "DTW": "Detroit",
    "PHL": "Philadelphia",
    "LGA": "LaGuardia",
}


def list_all_airports(database: Database) -> tuple[Database, str]:
    return database, json.dumps(AIRPORTS)


def search_direct_flight(
    database: Database, origin: str, destination: str, date: str
) -> tuple[Database, str]:
    found = [
        {**_timetable(flight), **flight["dates"][date]}
        for flight in _leaving(database, origin, date)
        if flight["destination"] == destination
    ]
    return database, json.dumps(found)


def search_onestop_flight(
    database: Database, origin: str, destination: str, date: str
) -> tuple[Database, str]:
    """Pairs of connecting flights: the second leaves after the first lands, on the next day if that lands
    after midnight."""
    arriving = [flight for _, flight in database.rows("flights") if flight["destination"] == destination]
    pairs: list[list[Record]] = []
    for first in _leaving(database, origin, date):
        lands = first["scheduled_arrival_time_est"]
        next_date = f"{date[:8]}{int(date[-2:]) + 1:02d}" if "+1" in lands else date
        for second in arriving:
            if second["origin"] != first["destination"] or lands > second["scheduled_departure_time_est"]:
                continue
            if second["dates"].get(next_date, {}).get("status") == "available":
                pairs.append(
                    [
                        {**_timetable(first), **first["dates"][date], "date": date},
                        {**_timetable(second), **second["dates"][next_date], "date": next_date},
                    ]
                )
    return database, json.dumps(pairs)


def _leaving(database: Database, origin: str, date: str) -> Iterator[Record]:
    for _, flight in database.rows("flights"):
        if flight["origin"] == origin and flight["dates"].get(date, {}).get("status") == "available":
            yield flight


def _timetable(flight: Record) -> Record:
    return {key: value for key, value in flight.items() if key != "dates"}
