"""A made-up world of cards and merchants, and what honest people pay in it: at home, online, and where they travel to.

All of it comes from a seed, column by column: a million cards take seconds. Places are latitudes and longitudes in degrees,
times microseconds from the first day's midnight, amounts euros.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Payments = dict[str, Array]
"""Columns of one length: at, card, merchant, online (bool), amount, kind (0: honest, else the place in KINDS plus one)."""

MINUTE, HOUR, DAY = 60_000_000, 3_600_000_000, 86_400_000_000
CITIES, ONLINE_SHARE, CHAIN_SHARE = 60, 0.15, 0.02
CATEGORIES = ("grocery", "restaurant", "fuel", "clothing", "electronics", "travel", "digital")
USUAL = np.array([0.8, 0.7, 1.2, 1.8, 4.0, 3.5, 0.35])
"""What is paid in a category, in terms of what the card usually pays."""
IN_SHOPS = np.array([0.38, 0.24, 0.12, 0.13, 0.05, 0.08, 0.0])
ONLINE = np.array([0.1, 0.1, 0.0, 0.25, 0.15, 0.1, 0.3])
DIGITAL = CATEGORIES.index("digital")
AWAY_SHARE, AWAY_DAYS = 0.03, 6.0


@dataclass(frozen=True)
class World:
    """Cities [C]; cards [N] with home, what they usually pay, payments a day, and since when they are; merchants [M] sorted by
    city, those that sell online last, as city C. `first` [C + 2]: where each city's merchants begin. Of a chain the
    terminals say where its head office is."""

    seed: int
    city_place: Array
    city_weight: Array
    home: Array
    home_place: Array
    usual: Array
    rate: Array
    since_days: Array
    merchant_city: Array
    merchant_place: Array
    category: Array
    price: Array
    first: Array

    @property
    def cards(self) -> int:
        return len(self.home)

    @property
    def merchants(self) -> int:
        return len(self.category)

    def pick_merchants(self, rng: np.random.Generator, city: Array) -> Array:
        """A merchant in each city [n] (C: online), the first of a city far more often than its last."""
        size = self.first[city + 1] - self.first[city]
        return self.first[city] + (size * rng.random(len(city)) ** 2).astype(np.int64)


def make_world(seed: int, cards: int) -> World:
    """A world with so many cards, and a merchant for each 25 of them, but 1,200 at least."""
    rng = np.random.default_rng([seed, 1])
    place = np.stack([rng.uniform(-38, 60, CITIES), rng.uniform(-180, 180, CITIES)])
    weight = rng.pareto(1.5, CITIES) + 0.3
    weight /= weight.sum()
    home = rng.choice(CITIES, cards, p=weight)
    merchants = max(1_200, cards // 25)
    city = np.sort(
        np.concatenate(
            [
                np.repeat(np.arange(CITIES), 4),
                rng.choice(CITIES, merchants - round(ONLINE_SHARE * merchants) - 4 * CITIES, p=weight),
                np.full(round(ONLINE_SHARE * merchants), CITIES),
            ]
        )
    )
    online = city == CITIES
    seat = np.where(online, rng.choice(CITIES, merchants, p=weight), city)
    elsewhere = (rng.random(merchants) < CHAIN_SHARE) & ~online
    seat = np.where(elsewhere, rng.choice(CITIES, merchants, p=weight), seat)
    category = np.where(online, rng.choice(7, merchants, p=ONLINE), rng.choice(7, merchants, p=IN_SHOPS))
    category[city.searchsorted(CITIES) :: 4] = DIGITAL
    return World(
        seed,
        place,
        weight,
        home,
        place[:, home] + rng.normal(0, 0.08, (2, cards)),
        rng.lognormal(3.2, 0.5, cards),
        rng.gamma(2.0, 0.6, cards),
        rng.exponential(900, cards) + 5,
        city,
        place[:, seat] + rng.normal(0, 0.08, (2, merchants)),
        category,
        rng.lognormal(0, 0.3, merchants),
        city.searchsorted(np.arange(CITIES + 2)),
    )


def honest(world: World, days: int) -> Payments:
    """What is paid in so many days, in no order. One card in thirty is away at any time, flown there and back again."""
    rng = np.random.default_rng([world.seed, 2])
    card = np.repeat(np.arange(world.cards), rng.poisson(world.rate * days))
    n = len(card)
    hour = np.where(rng.random(n) < 0.4, rng.normal(12.5, 2, n), rng.normal(18, 3, n))
    at = rng.integers(0, days, n) * DAY + ((hour - world.home_place[1][card] / 15) % 24 * HOUR).astype(np.int64)
    online = rng.random(n) < 0.25
    city = world.home[card]
    trips = fly(world, rng, days)
    place, gone = where(trips, card, at)
    city = np.where(place >= 0, place, city)
    kept = ~gone
    card, at, city, online = card[kept], at[kept], city[kept], online[kept]
    extra_card, extra_at, extra_city = at_airports(world, rng, trips, days)
    card, at = np.concatenate([card, extra_card]), np.concatenate([at, extra_at])
    city = np.concatenate([city, extra_city])
    online = np.concatenate([online, np.zeros(len(extra_card), bool)])
    mail_order = online & (rng.random(len(card)) < 0.06)
    shop_city = np.where(mail_order, rng.choice(CITIES, len(card), p=world.city_weight), np.where(online, CITIES, city))
    merchant = world.pick_merchants(rng, shop_city)
    return payments(at, card, merchant, online, usual_amounts(world, rng, card, merchant))


def payments(at: Array, card: Array, merchant: Array, online: Array, amount: Array, kind: int = 0) -> Payments:
    """The columns together."""
    return {
        "at": at.astype(np.int64),
        "card": card.astype(np.int32),
        "merchant": merchant.astype(np.int32),
        "online": np.broadcast_to(online, len(at)),
        "amount": amount.astype(np.float64),
        "kind": np.full(len(at), kind, np.int8),
    }


def usual_amounts(world: World, rng: np.random.Generator, card: Array, merchant: Array) -> Array:
    """What these cards pay to these merchants."""
    return world.usual[card] * USUAL[world.category[merchant]] * world.price[merchant] * rng.lognormal(0, 0.5, len(card))


@dataclass(frozen=True)
class Trips:
    """At most one for each card: by card [N], city (-1: none) and the times of both flights, away and home."""

    city: Array
    leave: Array
    arrive: Array
    back: Array
    home: Array


def fly(world: World, rng: np.random.Generator, days: int) -> Trips:
    """Who travels: some have left before the first day, some come home after the last. A flight does 650 to 900 km/h, and half
    an hour on either side."""
    n = world.cards
    going = rng.random(n) < AWAY_SHARE * (days + 2 * AWAY_DAYS) / AWAY_DAYS
    city = np.where(going, rng.choice(CITIES, n, p=world.city_weight), -1)
    city[city == world.home] = -1
    far = kilometres(world.city_place[:, city], world.city_place[:, world.home])
    takes = ((far / rng.uniform(650, 900, n) + 1) * HOUR).astype(np.int64)
    leave = (rng.uniform(-2 * AWAY_DAYS, days, n) * DAY).astype(np.int64)
    back = leave + takes + ((1.5 + rng.gamma(2.0, (AWAY_DAYS - 1.5) / 2, n)) * DAY).astype(np.int64)
    return Trips(city, leave, leave + takes, back, back + takes)


def where(trips: Trips, card: Array, at: Array) -> tuple[Array, Array]:
    """For payments [n]: the city that the card is away in (-1: at home), and whether it is in the air."""
    away = trips.city[card] >= 0
    there = away & (at >= trips.arrive[card]) & (at <= trips.back[card])
    air = away & ((at > trips.leave[card]) & (at < trips.arrive[card]) | (at > trips.back[card]) & (at < trips.home[card]))
    return np.where(there, trips.city[card], -1), air


def at_airports(world: World, rng: np.random.Generator, trips: Trips, days: int) -> tuple[Array, Array, Array]:
    """Card, time and city of what is paid just before and after a flight."""
    card, at, city = [], [], []
    going = np.flatnonzero(trips.city >= 0)
    for times, sign, abroad in ((trips.leave, -1, 0), (trips.arrive, 1, 1), (trips.back, -1, 1), (trips.home, 1, 0)):
        some = going[rng.random(len(going)) < 0.7]
        card.append(some)
        at.append(times[some] + sign * rng.integers(2 * MINUTE, 40 * MINUTE, len(some)))
        city.append(trips.city[some] if abroad else world.home[some])
    cards, ats, cities = np.concatenate(card), np.concatenate(at), np.concatenate(city)
    kept = (ats >= 0) & (ats < days * DAY)
    return cards[kept], ats[kept], cities[kept]


def kilometres(one: Array, other: Array) -> Array:
    """The great-circle distance of places [2, n]."""
    a, b = np.radians(one), np.radians(other)
    half = np.sin((b - a) / 2) ** 2
    return 12_742 * np.arcsin(np.sqrt(np.minimum(1, half[0] + np.cos(a[0]) * np.cos(b[0]) * half[1])))
