"""What a trial says at its end, for people who see headrace for the first time."""

import json
from collections import Counter
from typing import Any

from ops.trial import Trial
from streams.pipeline import Pipeline


def tell(trial: Trial, pipeline: Pipeline, name: str) -> str:
    """The trial in some lines. name: what the pipeline is called on the command line."""
    model, sink = pipeline.model, pipeline.sinks[0]
    unseen = ", which the model was not trained on," if trial.trained else ""
    since = f" from {model.until} on{unseen}" if model.until else ""
    lines = [
        "",
        f"{pipeline.name}: {trial.events:,} events{since} through an embedded broker in {trial.seconds:.1f} s",
        f"  decisions     {trial.expected:,}, one for each event that is decided on{_kinds(trial, pipeline)}",
        f"  dead letters  {len(trial.dead):,}" + (f", the first: {trial.dead[0]['reason']}" if trial.dead else ""),
    ]
    if trial.auc is not None:
        lines.append(f"  quality       AUC {trial.auc:.3f} by what came true later (0.5 is guessing, 1 is perfect)")
    if trial.unused:
        trains = f"; headrace train {name} makes one that takes them" if model.train else ""
        lines.append(f"  not used      {', '.join(trial.unused)}: the model takes the other features{trains}")
    if sink.encode is None:
        flags = Counter(flag for decision in trial.decisions for flag in decision["flags"])
        lines.append("  flags         " + (", ".join(f"{n:,} {flag}" for flag, n in flags.most_common(6)) or "none"))
        if any(flag.startswith("warming:") for flag in flags):
            lines.append("                (warming: the window reaches back to before the first event of this trial)")
        lines += ["", "the last of each decision:"]
        lines += [f"  {_line(decision)}" for decision in _last_of_each(trial)]
    if trial.decisions:
        lines += ["", f"one of them as a message on the topic {sink.topic}:", json.dumps(trial.decisions[-1], indent=1)]
    lines += [
        "",
        f"model {model.name} version {trial.model_version} "
        + (f"was trained for this; headrace train {name} makes the next" if trial.trained else "decided"),
        f"with a broker of yours: headrace topics {name} --brokers HOST:PORT --create; headrace run {name} --brokers HOST:PORT",
    ]
    return "\n".join(lines)


def counted(trial: Trial) -> dict[str, Any]:
    """The trial in numbers."""
    return {
        "events": trial.events,
        "expected": trial.expected,
        "decisions": len({decision.get("decision_id", k) for k, decision in enumerate(trial.decisions)}),
        "by_decision": Counter(decision["decision"] for decision in trial.decisions if "decision" in decision),
        "dead_letters": Counter(letter["code"] for letter in trial.dead),
        "auc": trial.auc,
        "seconds": round(trial.seconds, 3),
        "model_version": trial.model_version,
        "trained": trial.trained,
        "unused": trial.unused,
    }


def _kinds(trial: Trial, pipeline: Pipeline) -> str:
    if pipeline.sinks[0].encode is not None:
        return ""
    found = Counter(decision["decision"] for decision in trial.decisions)
    return ": " + ", ".join(f"{n:,} {decision}" for decision, n in found.most_common())


def _last_of_each(trial: Trial) -> list[dict[str, Any]]:
    return list({decision["decision"]: decision for decision in trial.decisions}.values())


def _line(decision: dict[str, Any]) -> str:
    score = decision["score"]
    shown = "no score" if score is None else f"score {score:.3f}"
    return f"{decision['decision']!s:12} event {decision['event_id']}  {shown}  {', '.join(decision['reasons'])}"
