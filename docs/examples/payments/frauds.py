"""Three kinds of fraud, and what looks like it and is honest."""

import numpy as np
from world import CITIES, DAY, DIGITAL, HOUR, USUAL, Array, Payments, World, kilometres, payments, usual_amounts

KINDS = ("testing", "two places", "bad merchant")
FRAUD_SHARE = 0.002
OF_TEST, OF_PLACES, OF_MERCHANT = (20, 61), (2, 6), (40, 101)


def frauds(world: World, base: Payments, payments: int, days: int) -> list[Payments]:
    """Fraud that makes up 0.2% of so many payments, a third of it of each kind. base: what is paid honestly and by habit."""
    rng = np.random.default_rng([world.seed, 3])
    each = FRAUD_SHARE * payments / 3
    return [
        testing(world, rng, _count(each, OF_TEST), days),
        two_places(world, rng, _count(each, OF_PLACES), base, days),
        bad_merchants(world, rng, _count(each, OF_MERCHANT), days),
    ]


def lookalikes(world: World, days: int) -> list[Payments]:
    """What honest people do now and then. (Travellers, mail orders and chains are among the honest payments themselves.)"""
    rng = np.random.default_rng([world.seed, 4])
    card_days = world.cards * days
    popular = max(6, round(card_days / 24_000))
    return [
        subscriptions(world, rng, round(0.0015 * card_days), days),
        sprees(world, rng, round(0.0008 * card_days), days),
        new_merchants(world, rng, popular, days),
        sales(world, rng, popular, days),
    ]


def testing(world: World, rng: np.random.Generator, cases: int, days: int) -> Payments:
    """Stolen numbers are tried out: 20 to 60 small payments, 3 to 30 s apart, at one to five sellers of digital goods."""
    case = _cases(rng, cases, OF_TEST)
    seconds = rng.exponential(rng.uniform(4, 25, cases)[case]) + 1
    at = _one_after_another(rng.integers(0, days * DAY - HOUR, cases), case, seconds)
    sellers = rng.integers(1, 6, cases)[case]
    merchant = _digital(world, rng, cases * 5).reshape(cases, 5)[case, (rng.random(len(case)) * sellers).astype(int)]
    amount = rng.lognormal(rng.normal(0.9, 0.4, cases)[case], 0.5)
    return payments(at, _some_cards(world, rng, cases)[case], merchant, np.True_, amount, 1)


def two_places(world: World, rng: np.random.Generator, cases: int, base: Payments, days: int) -> Payments:
    """A copy of a card is used in shops at least 600 km from where its owner has just paid, sooner than anyone can fly there:
    at 1,000 to 20,000 km/h, twice to five times. What is bought is what anybody buys."""
    shops = np.flatnonzero(~base["online"] & (base["at"] < days * DAY - 12 * HOUR))
    seen = rng.choice(shops, 3 * cases)
    card, city = base["card"][seen], rng.choice(CITIES, 3 * cases, p=world.city_weight)
    far = kilometres(world.merchant_place[:, base["merchant"][seen]], world.city_place[:, city])
    good = np.flatnonzero((far > 600) & (city != world.home[card]))[:cases]
    seen, card, city, far = seen[good], card[good], city[good], far[good]
    soon = far / np.minimum(20_000, 1_000 * np.exp(rng.exponential(0.8, len(good)))) * HOUR
    case = _cases(rng, len(good), OF_PLACES)
    apart = np.where(np.diff(case, prepend=-1) > 0, soon[case] / 1e6, rng.exponential(15 * 60, len(case)) + 30)
    at = _one_after_another(base["at"][seen], case, apart)
    merchant = world.pick_merchants(rng, city[case])
    amount = usual_amounts(world, rng, card[case], merchant) * rng.lognormal(0.5, 0.4, len(case))
    return payments(at, card[case], merchant, np.False_, amount, 2)


def bad_merchants(world: World, rng: np.random.Generator, cases: int, days: int) -> Payments:
    """A shop that was honest until then charges stolen cards from anywhere, online, 40 to 100 times in 2 to 12 hours, a card up
    to three times, and more than its customers use to pay. They go on paying there meanwhile."""
    case = _cases(rng, cases, OF_MERCHANT)
    shops = rng.choice(world.first[CITIES], cases, replace=False)
    lasts = rng.uniform(2 * HOUR, 12 * HOUR, cases)
    at = rng.uniform(0, days * DAY - lasts)[case] + rng.random(len(case)) * lasts[case]
    stolen = _some_cards(world, rng, cases * 50).reshape(cases, 50)
    card = stolen[case, (rng.random(len(case)) * (OF_MERCHANT[1] // 2)).astype(int) % (1 + np.bincount(case)[case] // 2)]
    level = usual_level(world, shops) * rng.lognormal(0.9, 0.3, cases)
    amount = level[case] * rng.lognormal(0, 0.45, len(case))
    return payments(at, card, shops[case], np.True_, amount, 3)


def subscriptions(world: World, rng: np.random.Generator, cases: int, days: int) -> Payments:
    """What a card is subscribed to is charged in one night: 4 to 25 small amounts within minutes, each by another seller."""
    case = _cases(rng, cases, (4, 26))
    at = _one_after_another(
        rng.integers(0, days, cases) * DAY + rng.integers(0, 6 * HOUR, cases), case, rng.exponential(15, len(case)) + 1
    )
    amount = np.floor(rng.lognormal(1.9, 0.5, len(case))) + 0.99
    return payments(at, _some_cards(world, rng, cases)[case], _digital(world, rng, len(case)), np.True_, amount)


def sprees(world: World, rng: np.random.Generator, cases: int, days: int) -> Payments:
    """A child plays: 6 to 30 small payments to one or two sellers within half an hour."""
    case = _cases(rng, cases, (6, 31))
    at = _one_after_another(rng.integers(0, days * DAY - HOUR, cases), case, rng.exponential(55, len(case)) + 8)
    merchant = _digital(world, rng, cases * 2).reshape(cases, 2)[case, (rng.random(len(case)) < 0.2).astype(int)]
    amount = rng.choice([0.99, 1.99, 2.99, 4.99, 9.99], len(case), p=[0.3, 0.3, 0.15, 0.15, 0.1])
    return payments(at, _some_cards(world, rng, cases)[case], merchant, np.True_, amount)


def new_merchants(world: World, rng: np.random.Generator, cases: int, days: int) -> Payments:
    """A merchant that nobody knew is all the rage for a day: some in town, some by orders from everywhere."""
    case = _cases(rng, cases, (60, 300))
    shops = rng.choice(world.first[CITIES], cases, replace=False)
    at = rng.uniform(0, (days - 1) * DAY, cases)[case] + rng.beta(1.5, 3, len(case)) * DAY
    by_order = (rng.random(cases) < 0.5)[case]
    anywhere = _some_cards(world, rng, len(case))
    of_town = _residents(world, rng, world.merchant_city[shops][case])
    card = np.where(by_order, anywhere, of_town)
    return payments(at, card, shops[case], by_order, usual_amounts(world, rng, card, shops[case]))


def sales(world: World, rng: np.random.Generator, cases: int, days: int) -> Payments:
    """Tickets for something are sold: one price, many cards, within two hours, online."""
    case = _cases(rng, cases, (60, 300))
    sellers = rng.integers(world.first[CITIES], world.merchants, cases)
    at = rng.uniform(0, days * DAY - 2 * HOUR, cases)[case] + rng.beta(1, 3, len(case)) * 2 * HOUR
    amount = rng.lognormal(4.0, 0.4, cases)[case] * rng.integers(1, 5, len(case))
    return payments(at, _some_cards(world, rng, len(case)), sellers[case], np.True_, amount)


def usual_level(world: World, merchant: Array) -> Array:
    """About what is paid to these merchants."""
    return np.median(world.usual) * USUAL[world.category[merchant]] * world.price[merchant]


def _count(payments: float, of: tuple[int, int]) -> int:
    return max(2, round(payments / np.mean([of[0], of[1] - 1])))


def _cases(rng: np.random.Generator, cases: int, of: tuple[int, int]) -> Array:
    """Of payments [n], which case each is of: in turn, of as many payments each as `of` says, its end left out."""
    return np.repeat(np.arange(cases), rng.integers(*of, cases))


def _one_after_another(start: Array, case: Array, seconds: Array) -> Array:
    """Times from each case's start on, so many seconds after the one before."""
    total = np.cumsum(seconds)
    before = np.concatenate([[0.0], total])[case.searchsorted(np.arange(len(start)))]
    return start[case] + ((total - before[case]) * 1e6).astype(np.int64)


def _some_cards(world: World, rng: np.random.Generator, n: int) -> Array:
    return rng.integers(0, world.cards, n)


def _residents(world: World, rng: np.random.Generator, city: Array) -> Array:
    """A card whose home is in each of these cities."""
    by_city = np.argsort(world.home, kind="stable")
    first = world.home[by_city].searchsorted(np.arange(CITIES + 1))
    size = np.maximum(1, first[city + 1] - first[city])
    return by_city[np.minimum(first[city] + (size * rng.random(len(city))).astype(np.int64), world.cards - 1)]


def _digital(world: World, rng: np.random.Generator, n: int) -> Array:
    return rng.choice(np.flatnonzero(world.category == DIGITAL), n)
