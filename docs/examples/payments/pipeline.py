"""Is this card payment fraud? Decided as it comes, from the payment, the card's profile, and what card and merchant just did.

headrace demo payments     trains the model, decides held-out days of another world, and says what was found of each fraud
"""

from functools import partial
from pathlib import Path

from learn import train
from samples import Size, history, profiles

from features.schema import Integer, Kind, Number, Schema, Text, Time
from features.spec import Derived, Fields, Label, Last, Stored, Window
from models.policy import Bands
from streams.avro import Avro
from streams.pipeline import Decisions, Drift, Model, Pipeline
from streams.topic import Topic

PAID = ("payment",)
Payment = Schema(
    "Payment",
    version=1,
    fields={
        "kind": Kind(("payment", "report")),
        "at": Time(after="2024-01-01"),
        "payment_id": Integer(low=0),
        "card": Text(path="card.id", max_bytes=24),
        "home_lat": Number(path="card.home.lat", low=-90, high=90, on=PAID),
        "home_lon": Number(path="card.home.lon", low=-180, high=180, on=PAID),
        "merchant": Text(path="merchant.id", on=PAID, max_bytes=24),
        "category": Text(path="merchant.category", on=PAID, max_bytes=24),
        "lat": Number(path="place.lat", low=-90, high=90, on=PAID),
        "lon": Number(path="place.lon", low=-180, high=180, on=PAID),
        "channel": Text(on=PAID, max_bytes=10),
        "amount": Number(low=0, high=1_000_000, on=PAID),
        "currency": Text(on=PAID, max_bytes=3),
    },
)

IN_SHOP = "kind == 'payment' and channel == 'shop'"
AT_HOME = f"{IN_SHOP} and kilometres(lat, lon, home_lat, home_lon) < 100"
PAYMENT, REPORT = "kind == 'payment'", "kind == 'report'"
FAR_ORDER = "kind == 'payment' and channel == 'online' and kilometres(lat, lon, home_lat, home_lon) > 100"
FROM_HOME = "kilometres(lat, lon, home_lat, home_lon)"
card, merchant = partial(Window, "card", where=PAYMENT), partial(Window, "merchant", where=PAYMENT)

FEATURES = [
    Fields("amount", "category", "channel", "currency"),
    Stored("card_v1"),
    Derived("hour", "hour(at, 'UTC')"),
    Derived("home_km", FROM_HOME),
    Derived("times_typical", "amount / card_profile__typical_amount"),
    # the card: how often, how much, at how many merchants
    card("amount", over="2m", tile="10s", aggs=("count", "mean", "max")),
    card("amount", over="10m", tile="1m", aggs=("count", "mean", "max", "std", "distinct")),
    card("amount", over="1h", tile="1m", aggs=("count", "mean", "max")),
    card("amount", over="1d", aggs=("count", "sum", "mean", "max", "age")),
    card("merchant", over="10m", tile="1m", aggs=("distinct",)),
    Derived("pace", "amount_count_2m_by_card / max(amount_count_10m_by_card, 1.0)"),
    Derived("prices", "amount_distinct_10m_by_card / max(amount_count_10m_by_card, 1.0)"),
    Derived("per_merchant_10m", "amount_count_10m_by_card / max(merchant_distinct_10m_by_card, 1.0)"),
    # the card: where it was last, and when it was last near home, and how fast it would have had to travel
    Last("card", "lat", "lon", within="1d", where=IN_SHOP),
    Window("card", "lat", over="1d", aggs=("age",), where=IN_SHOP),
    Window("card", "lat", over="1d", aggs=("age",), where=AT_HOME, name="at_home"),
    Derived("last_km", "kilometres(lat, lon, lat_last_by_card, lon_last_by_card)"),
    Derived("last_kmh", "last_km / (lat_age_1d_by_card / 3600 + 0.01)"),
    Derived("home_kmh", "home_km / (at_home_age_1d_by_card / 3600 + 0.01)"),
    # the merchant: is more going on than usually, for other amounts, with cards from further away
    merchant("amount", over="10m", tile="1m", aggs=("count", "mean")),
    merchant("amount", over="1h", tile="1m", aggs=("count", "mean", "std")),
    merchant("amount", over="1d", tile="10m", aggs=("count", "mean", "std")),
    merchant("card", over="1h", tile="10m", aggs=("distinct",)),
    merchant("card", over="1d", tile="1h", aggs=("distinct",)),
    Window("merchant", "amount", over="1h", tile="1m", aggs=("count", "mean"), where=FAR_ORDER, name="far"),
    Window("merchant", "amount", over="1d", tile="10m", aggs=("count", "mean"), where=FAR_ORDER, name="far"),
    merchant(FROM_HOME, over="1h", tile="1m", aggs=("mean",), name="from_home"),
    merchant(FROM_HOME, over="1d", tile="10m", aggs=("mean", "max"), name="from_home"),
    Derived("rush", "amount_count_1h_by_merchant * 24 / max(amount_count_1d_by_merchant, 1.0)"),
    Derived("per_card_1h", "amount_count_1h_by_merchant / max(card_distinct_1h_by_merchant, 1.0)"),
    Derived("per_card_1d", "amount_count_1d_by_merchant / max(card_distinct_1d_by_merchant, 1.0)"),
    Derived("far_share_1d", "far_count_1d_by_merchant / max(amount_count_1d_by_merchant, 1.0)"),
    Derived("far_times", "far_mean_1d_by_merchant / amount_mean_1d_by_merchant"),
    Derived("times_merchant", "amount / amount_mean_1d_by_merchant"),
]


BLOCK = 0.12
"""What `headrace demo payments` chooses as it is."""


def payments(size: Size, block: float = BLOCK) -> Pipeline:
    """The pipeline, with made-up events of a size. block: the score from which on a payment is refused."""
    return Pipeline(
        name="payments",
        events=Topic("payment-events", schema=Payment, time="at", key="card", id="payment_id", format=Avro()),
        decide_on=PAYMENT,  # reports of fraud get no decision: they are what is learned from
        features=FEATURES,
        model=Model("payments", train=train, history=partial(history, size), until=f"{size.trained_on}"),
        policy=Bands(block=block, review=block / 3, otherwise="allow"),
        label=Label(join="payment_id", value=REPORT, where=REPORT, within="31d", absent=False),
        drift=Drift("payment-drift", window="1d", rate=0.02),
        sinks=[Decisions("payment-decisions")],
        feast_repo=Path(__file__).parent / "feature_repo",
        sources=profiles(size),
    )


pipeline = payments(Size())
