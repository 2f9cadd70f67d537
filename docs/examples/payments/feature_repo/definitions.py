"""What the bank knows of a card: a plain Feast repo (`feast -c feature_repo feature-views list`)."""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, String

card = Entity(name="card", join_keys=["card"], value_type=ValueType.STRING)

card_profile = FeatureView(
    name="card_profile",
    entities=[card],
    ttl=timedelta(days=90),  # what is older is not used, and the decision says stale:card_profile
    schema=[
        Field(name="card", dtype=String),
        Field(name="typical_amount", dtype=Float32, description="what is usually paid with it, in euros"),
        Field(name="payments_a_day", dtype=Float32),
        Field(name="age_days", dtype=Float32, description="since it was issued"),
    ],
    source=FileSource(name="cards", path="data/cards.parquet", timestamp_field="event_timestamp"),
)

card_v1 = FeatureService(name="card_v1", features=[card_profile])
