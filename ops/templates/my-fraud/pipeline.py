"""Is this card payment fraud? Decided as it comes, from the payment itself, the card's profile, and what just happened.

headrace try pipeline.py     trains a model, decides the sample events on a broker of its own, and says what was decided
"""

from pathlib import Path

from samples import history, write_profiles
from training import train

from features.schema import Integer, Kind, Number, Schema, Text, Time
from features.spec import Derived, Fields, Label, Last, Stored, Window
from models.policy import Bands, Rule
from streams.pipeline import Decisions, Drift, Model, Pipeline
from streams.topic import Topic

# A message of the topic, as JSON. What does not fit goes to my-fraud-events.dead, with the reason.
Payment = Schema(
    "Payment",
    version=1,
    fields={
        "kind": Kind(("payment", "chargeback")),
        "at": Time(after="2024-01-01"),
        "payment_id": Integer(low=0),
        "card": Text(max_bytes=20),
        "merchant": Text(on=("payment",), max_bytes=20),  # only payments have one
        "channel": Text(on=("payment",), max_bytes=20),
        "amount": Number(low=0, high=100_000, on=("payment",)),
    },
)

pipeline = Pipeline(
    name="my-fraud",
    events=Topic("my-fraud-events", schema=Payment, time="at", key="card", id="payment_id"),
    decide_on="kind == 'payment'",  # chargebacks get no decision: they are what is learned from
    features=[  # what the model sees; none of it holds anything of this payment's own future
        Fields("amount", "channel"),  # of the payment: a number, and a text, which is a category
        Derived("hour", "hour(at, 'Europe/Berlin')"),  # computed from it (headrace's features/expressions.py)
        Stored("card_v1"),  # a Feast service: feature_repo/definitions.py. Missing or too old: null, and the decision says so
        Window("card", "amount", over="10m", aggs=("count", "sum"), where="kind == 'payment'"),  # amount_count_10m_by_card, ...
        Window("merchant", "amount", over="1h", aggs=("count", "mean"), where="kind == 'payment'"),
        Last("card", "amount", within="1d", where="kind == 'payment'"),  # amount_last_by_card
    ],
    model=Model("my-fraud", train=train, history=history, until="2024-03-22"),  # what is later, `headrace try` decides
    policy=Bands(  # from 0.5 on block, from 0.1 on review, below allow; a rule comes before the score, and is given as a reason
        block=0.5,
        review=0.1,
        otherwise="allow",
        rules=[Rule("burst", when="amount_count_10m_by_card >= 8", decide="block")],
    ),
    label=Label(join="payment_id", value="kind == 'chargeback'", where="kind == 'chargeback'", within="7d", absent=False),
    drift=Drift("my-fraud-drift", window="1d", rate=0.02),  # days unlike training's are told; one in fifty by mistake
    sinks=[Decisions("my-fraud-decisions", features=True)],
    feast_repo=Path(__file__).parent / "feature_repo",
    sources=write_profiles,  # leave it out for a repo that others feed and apply
)
