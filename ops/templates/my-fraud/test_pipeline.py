"""What the pipeline must do whatever the model says. Run with `python -m pytest`, once there is a model (headrace train)."""

from datetime import UTC, datetime, timedelta

from pipeline import pipeline

from ops.trial import decide


def test_a_run_of_small_payments_does_not_just_go_through() -> None:
    night = datetime(2024, 3, 25, 2, tzinfo=UTC)
    payments = [
        {
            "kind": "payment",
            "at": (night + timedelta(seconds=20 * k)).isoformat().replace("+00:00", "Z"),
            "payment_id": k,
            "card": "card-0001",
            "merchant": "merchant-001",
            "channel": "online",
            "amount": 5.0,
        }
        for k in range(12)
    ]
    decisions = decide(pipeline, payments)
    assert [decision["event_id"] for decision in decisions] == list(range(12))
    assert "burst" not in decisions[0]["reasons"]
    assert decisions[-1]["decision"] == "block"
    assert "burst" in decisions[-1]["reasons"]
