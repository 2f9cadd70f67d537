"""What is known before a flight appears on the board: how its route, carrier and plane have done up to the last month end."""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, String

TTL = timedelta(days=120)

origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
dest = Entity(name="dest", join_keys=["dest"], value_type=ValueType.STRING)
carrier = Entity(name="carrier", join_keys=["carrier"], value_type=ValueType.STRING)
plane = Entity(name="plane", join_keys=["tailnum"], value_type=ValueType.STRING)


def history(name: str, entities: list[Entity]) -> FeatureView:
    """A row per entity and month end, each made only from flights that had arrived before it."""
    return FeatureView(
        name=f"{name}_history",
        entities=entities,
        ttl=TTL,
        schema=[
            *(Field(name=entity.join_key, dtype=String) for entity in entities),
            Field(name="late_share", dtype=Float32, description="share of arrivals 15 minutes or more late, this year so far"),
            Field(name="mean_arr_delay", dtype=Float32, description="mean arrival delay in minutes, this year so far"),
            Field(name="flights", dtype=Float32, description="arrivals this year so far"),
        ],
        source=FileSource(name=name, path=f"data/{name}.parquet", timestamp_field="event_timestamp"),
    )


route_history = history("route", [origin, dest])
carrier_history = history("carrier", [carrier])
plane_history = history("plane", [plane])

flight_v1 = FeatureService(name="flight_v1", features=[route_history, carrier_history, plane_history])
