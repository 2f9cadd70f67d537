"""Will this flight arrive late? Decided when it appears on the board, from what is known at that moment."""

from features.schema import Integer, Kind, Number, Schema, Text, Time
from features.spec import Derived, Fields, Label, Last, Stored, Window
from models.flights import train
from models.flights_history import REPO, history, write_sources
from models.policy import Bands, Rule
from streams.pipeline import Decisions, Drift, Model, Pipeline
from streams.topic import Topic

FLIGHT = ("arrived", "departed", "scheduled")
BOARD = ("scheduled",)
WEATHER = ("weather",)

FlightEvent = Schema(
    "FlightEvent",
    version=1,
    fields={
        "kind": Kind(("weather", "arrived", "departed", "scheduled")),
        "at": Time(after="2012-12-31", before="2100-01-01"),
        "flight_id": Integer(low=0, on=FLIGHT),
        "origin": Text(on=("departed", "scheduled", "weather"), max_bytes=8),
        "tailnum": Text(on=FLIGHT, optional=True, max_bytes=16),
        "carrier": Text(on=BOARD, max_bytes=8),
        "flight": Integer(low=0, high=99_999, on=BOARD),
        "dest": Text(on=BOARD, max_bytes=8),
        "distance": Number(low=0, high=20_000, on=BOARD),
        "dep_delay": Number(low=-1_440, high=10_000, on=("departed",)),
        "arr_delay": Number(low=-1_440, high=10_000, on=("arrived",)),
        "temp": Number(low=-100, high=200, on=WEATHER, optional=True),
        "wind_speed": Number(low=0, high=2_000, on=WEATHER, optional=True),
        "precip": Number(low=0, high=100, on=WEATHER, optional=True),
        "visib": Number(low=0, high=100, on=WEATHER, optional=True),
        "pressure": Number(low=500, high=1_200, on=WEATHER, optional=True),
    },
)

flights = Pipeline(
    name="flights",
    events=Topic(
        "flight-events",
        schema=FlightEvent,
        time="at",
        key="tailnum",
        other_keys=("flight_id", "origin"),
        id="flight_id",
        ties=("kind", "flight_id"),
    ),
    decide_on="kind == 'scheduled'",
    features=[
        Fields("carrier", "origin", "dest", "distance"),
        Derived("minute_of_day", "minute_of_day(at, 'America/New_York')"),
        Derived("weekday", "weekday(at, 'America/New_York')"),
        Stored("flight_v1"),
        Window("origin", "dep_delay", over="2h", aggs=("mean", "max", "count"), where="kind == 'departed'"),
        Last("tailnum", "arr_delay", within="12h", where="kind == 'arrived'"),
        Last("origin", "temp", "wind_speed", "precip", "visib", "pressure", within="3h", where="kind == 'weather'"),
    ],
    model=Model("flights", train=train, history=history, until="2013-10-01T04:00:00Z"),  # midnight in New York
    policy=Bands(
        late=0.5,
        watch=0.3,
        otherwise="on_time",
        rules=[Rule("storm", when="wind_speed_last_by_origin >= 60", decide="watch")],
    ),
    label=Label(join="flight_id", value="arr_delay >= 15", where="kind == 'arrived'", within="2d", absent=True),
    drift=Drift("flight-drift", window="1d", rate=0.02),
    sinks=[Decisions("flight-decisions")],
    feast_repo=REPO,
    sources=write_sources,
)
flow = flights.flow()
