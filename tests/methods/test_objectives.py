"""The objectives against closed forms in NumPy's float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_expit, log_softmax, softmax

from wsdl_jax.methods import objectives

RNG = np.random.default_rng(0)
MAP_LOGITS = RNG.normal(0, 2, (5, 4, 3, 2)).astype(np.float32)
IMAGE_LOGITS = RNG.normal(0, 2, (5, 2)).astype(np.float32)
ATTENTION = RNG.uniform(0.01, 0.99, (5, 4, 3)).astype(np.float32)
LABELS = np.array([0, 1, 1, 0, 1])
MASKS = (RNG.random((5, 4, 3)) < 0.4).astype(np.int32)
SHARES = RNG.random((5, 4, 3)).astype(np.float32).round(1)  # some are 0, or 1
WEIGHT = np.array([1, 0, 1, 1, 0], np.float32)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-log p(target), elementwise."""
    return -np.take_along_axis(log_softmax(logits.astype(float), -1), targets[..., None], -1)[
        ..., 0
    ]


def binary_cross_entropy(p: np.ndarray, target: np.ndarray) -> np.ndarray:
    p = p.astype(float)
    return -np.where(target == 1, np.log(p), np.log(1 - p))


def every(logits, labels):
    everywhere = np.broadcast_to(labels[:, None, None], logits.shape[:3])
    return cross_entropy(logits, everywhere).mean((1, 2))


def largest_difference(logits, labels):
    per_image = []
    for image, label in zip(logits.reshape(len(logits), -1, 2), labels, strict=True):
        location = max(range(len(image)), key=lambda i: image[i, 1] - image[i, 0])
        per_image.append(cross_entropy(image[location], np.array(label)))
    return np.array(per_image)


def average(logits, labels):
    # The softmax of log(p) + constant is p itself, as its entries sum to one.
    p = softmax(logits.astype(float), -1).mean((1, 2))
    return -np.log(p[np.arange(len(p)), labels])


def of_differences(pool):
    """The binary cross-entropy of what is pooled of the locations' logit differences."""

    def closed_form(logits, labels):
        logits = logits.astype(float).reshape(len(logits), -1, 2)
        pooled = np.array([pool(image[:, 1] - image[:, 0]) for image in logits])
        return -log_expit(np.where(labels == 1, pooled, -pooled))

    return closed_form


def generalized_mean(power):
    def closed_form(logits, labels):
        p = softmax(logits.astype(float), -1)[..., 1].reshape(len(logits), -1)
        pooled = (p**power).mean(1) ** (1 / power)
        return -np.log(np.where(labels == 1, pooled, 1 - pooled))

    return closed_form


def balanced(p, shares, fake_weight):
    p, shares = p.astype(float), shares.astype(float)
    loss = -(fake_weight * shares * np.log(p) + (1 - shares) * np.log(1 - p))
    return loss.mean((1, 2))


# Objective, its network output, its targets, and its value for each image.
OBJECTIVES = {
    "image": (objectives.image_cross_entropy, IMAGE_LOGITS, LABELS, cross_entropy),
    "every": (objectives.patches_weak, MAP_LOGITS, LABELS, every),
    "max": (objectives.patches_weak_max, MAP_LOGITS, LABELS, largest_difference),
    "average": (objectives.patches_weak_average, MAP_LOGITS, LABELS, average),
    "lse": (
        functools.partial(objectives.patches_weak_lse, sharpness=2.5),
        MAP_LOGITS,
        LABELS,
        of_differences(lambda x: np.log(np.exp(2.5 * x).mean()) / 2.5),
    ),
    "topk": (
        functools.partial(objectives.patches_weak_topk, topk=0.3),
        MAP_LOGITS,
        LABELS,
        of_differences(lambda x: np.sort(x)[-4:].mean()),  # 0.3 of 12 locations, rounded up
    ),
    "gem": (
        functools.partial(objectives.patches_weak_gem, power=2.5),
        MAP_LOGITS,
        LABELS,
        generalized_mean(2.5),
    ),
    "map spliced": (
        functools.partial(objectives.map_spliced, fake_weight=2.5),
        MAP_LOGITS,
        SHARES,
        lambda x, t: balanced(softmax(x.astype(float), -1)[..., 1], t, 2.5),
    ),
    "explanation spliced": (
        functools.partial(objectives.explanation_spliced, fake_weight=0.5),
        MAP_LOGITS[..., 0],
        SHARES,
        lambda x, t: balanced(expit(x.astype(float)), t, 0.5),
    ),
    "attention spliced": (
        functools.partial(objectives.attention_spliced, fake_weight=2.5),
        ATTENTION,
        SHARES,
        lambda x, t: balanced(x, t, 2.5),
    ),
    "full": (
        objectives.patches_full,
        MAP_LOGITS,
        MASKS,
        lambda x, t: cross_entropy(x, t).mean((1, 2)),
    ),
    "attention weak": (
        objectives.attention_map_weak,
        ATTENTION,
        LABELS,
        lambda x, t: binary_cross_entropy(x.max((1, 2)), t),
    ),
    "attention full": (
        objectives.attention_full,
        ATTENTION,
        MASKS,
        lambda x, t: binary_cross_entropy(x, t).mean((1, 2)),
    ),
}
everyone = pytest.mark.parametrize(
    ("objective", "outputs", "targets", "closed_form"), OBJECTIVES.values(), ids=OBJECTIVES
)


@everyone
def test_closed_form(objective, outputs, targets, closed_form):
    loss = objective(jnp.array(outputs), jnp.array(targets))
    assert loss.shape == ()
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, closed_form(outputs, targets).mean(), rtol=2e-6)


@everyone
def test_weight_leaves_padding_out(objective, outputs, targets, closed_form):
    kept = WEIGHT == 1
    loss = objective(jnp.array(outputs), jnp.array(targets), jnp.array(WEIGHT))
    np.testing.assert_allclose(loss, closed_form(outputs[kept], targets[kept]).mean(), rtol=2e-6)
    # Whatever stands in the padding, loss and gradient are the same to the last digit.
    value_and_gradient = jax.value_and_grad(lambda x, t: objective(x, t, jnp.array(WEIGHT)))
    other_outputs, other_targets = outputs.copy(), targets.copy()
    other_outputs[~kept], other_targets[~kept] = 0.5, 0
    first = value_and_gradient(jnp.array(outputs), jnp.array(targets))
    second = value_and_gradient(jnp.array(other_outputs), jnp.array(other_targets))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert not np.asarray(first[1])[~kept].any()
    assert np.asarray(first[1])[kept].any()


@everyone
def test_only_padding_costs_nothing(objective, outputs, targets, closed_form):
    nothing = jnp.zeros(len(outputs))
    assert objective(jnp.array(outputs), jnp.array(targets), nothing) == 0


def test_max_trains_one_location_an_image():
    gradient = jax.grad(objectives.patches_weak_max)(jnp.array(MAP_LOGITS), jnp.array(LABELS))
    touched = np.asarray(gradient).any(-1).reshape(5, -1)
    difference = (MAP_LOGITS[..., 1] - MAP_LOGITS[..., 0]).reshape(5, -1)
    np.testing.assert_array_equal(touched.sum(1), 1)
    np.testing.assert_array_equal(touched.argmax(1), difference.argmax(1))


def test_average_offset_changes_nothing(monkeypatch):
    function = jax.value_and_grad(objectives.patches_weak_average)
    published = function(jnp.array(MAP_LOGITS), jnp.array(LABELS))
    assert objectives.AVERAGE_OFFSET == 0.7
    monkeypatch.setattr(objectives, "AVERAGE_OFFSET", 0.0)
    without = function(jnp.array(MAP_LOGITS), jnp.array(LABELS))
    np.testing.assert_allclose(published[0], without[0], rtol=1e-6)
    np.testing.assert_allclose(published[1], without[1], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("objective", "limit"),
    [
        (functools.partial(objectives.patches_weak_lse, sharpness=1e5), largest_difference),
        (functools.partial(objectives.patches_weak_lse, sharpness=1e-3), of_differences(np.mean)),
        (functools.partial(objectives.patches_weak_topk, topk=1e-3), largest_difference),
        (functools.partial(objectives.patches_weak_topk, topk=1.0), of_differences(np.mean)),
        (functools.partial(objectives.patches_weak_gem, power=1.0), average),
        (functools.partial(objectives.patches_weak_gem, power=1e5), largest_difference),
    ],
)
def test_limits_of_pooling(objective, limit):
    loss = objective(jnp.array(MAP_LOGITS), jnp.array(LABELS))
    np.testing.assert_allclose(loss, limit(MAP_LOGITS, LABELS).mean(), rtol=2e-3)


@pytest.mark.parametrize("power", [1.0, 3.0, 20.0])
def test_generalized_mean_of_saturated_locations(power):
    """Where all locations are alike it is the location's probability, for any power."""
    objective = functools.partial(objectives.patches_weak_gem, power=power)
    for difference in (-200.0, -30.0, -7.0, -1.0, 0.0, 5.0, 6.9, 8.0, 17.0, 30.0, 90.0, 200.0):
        logits = jnp.zeros((1, 3, 2, 2)).at[..., 1].set(difference)
        for label, sign in ((0, 1), (1, -1)):
            loss, gradient = jax.value_and_grad(objective)(logits, jnp.array([label]))
            expected = np.logaddexp(0, sign * difference)
            np.testing.assert_allclose(loss, expected, rtol=3e-6, atol=3e-7)
            slope = sign * expit(sign * difference)
            np.testing.assert_allclose(gradient[..., 1], slope / 6, rtol=1e-4, atol=3e-8)


def test_shares_of_whole_images_are_labels():
    shares = jnp.broadcast_to(jnp.array(LABELS, jnp.float32)[:, None, None], (5, 4, 3))
    np.testing.assert_allclose(
        objectives.map_spliced(jnp.array(MAP_LOGITS), shares),
        objectives.patches_weak(jnp.array(MAP_LOGITS), jnp.array(LABELS)),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        objectives.attention_spliced(jnp.array(ATTENTION), jnp.array(MASKS, jnp.float32)),
        objectives.attention_full(jnp.array(ATTENTION), jnp.array(MASKS)),
        rtol=1e-6,
    )


@pytest.mark.parametrize("weight", [None, [1, 1, 0, 1, 1], [0, 1, 0, 0, 0]])
@pytest.mark.parametrize("known", [[True, False, True, False, True], [True] * 5, [False] * 5])
def test_images_of_which_the_region_is_known_and_others(known, weight):
    shares = np.where(np.array(known)[:, None, None], SHARES, np.nan).astype(np.float32)
    located = balanced(softmax(MAP_LOGITS.astype(float), -1)[..., 1], SHARES, 1.0)
    flat = MAP_LOGITS.astype(float).reshape(5, -1, 2)
    differences = np.sort(flat[..., 1] - flat[..., 0], axis=1)[:, -6:].mean(1)
    pooled = np.log1p(np.exp(np.where(np.array(LABELS) == 1, -differences, differences)))
    expected = np.average(np.where(known, located, pooled), weights=weight)

    def objective(x):
        of_label = functools.partial(objectives.patches_weak_topk, topk=0.5)
        given = None if weight is None else jnp.array(weight, jnp.float32)
        targets = jnp.array(LABELS), jnp.array(shares)
        return objectives.patches_partly_known(x, *targets, given, unknown=of_label)

    loss, gradient = jax.value_and_grad(objective)(jnp.array(MAP_LOGITS))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert np.isfinite(gradient).all()
    moved = np.abs(np.asarray(gradient)).max((1, 2, 3)) > 0
    np.testing.assert_array_equal(moved, np.ones(5) if weight is None else np.array(weight) > 0)


def test_gradients_against_finite_differences():
    step = 1e-6
    for objective, outputs, targets, closed_form in OBJECTIVES.values():
        gradient = jax.grad(objective)(jnp.array(outputs), jnp.array(targets))
        direction = RNG.normal(size=outputs.shape)
        up, down = (
            closed_form(outputs.astype(float) + sign * step * direction, targets).mean()
            for sign in (1, -1)
        )
        np.testing.assert_allclose(
            (np.asarray(gradient) * direction).sum(), (up - down) / (2 * step), rtol=1e-4
        )


@pytest.mark.parametrize(
    ("probability", "target", "expected"),
    [(0.0, 1, 100.0), (1.0, 0, 100.0), (0.0, 0, 0.0), (1.0, 1, 0.0)],
)
def test_binary_cross_entropy_is_bounded(probability, target, expected):
    attention = jnp.full((1, 2, 2), probability)
    assert objectives.attention_map_weak(attention, jnp.array([target])) == expected
    assert objectives.attention_full(attention, jnp.full((1, 2, 2), target)) == expected


@pytest.mark.parametrize("size", [20.0, 80.0, 1e4, 1e30])
@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_extreme_logits_stay_finite(size, target, sign):
    label, mask = jnp.array([target]), jnp.full((1, 2, 2), target)
    logits = sign * jnp.array([-size, size])
    maps = jnp.broadcast_to(logits, (1, 2, 2, 2))
    wrong = sign != (1 if target else -1)
    for objective, x, t in [
        (objectives.image_cross_entropy, logits[None], label),
        (objectives.patches_weak, maps, label),
        (objectives.patches_weak_max, maps, label),
        (objectives.patches_weak_average, maps, label),
        (functools.partial(objectives.patches_weak_lse, sharpness=5.0), maps, label),
        (functools.partial(objectives.patches_weak_topk, topk=0.5), maps, label),
        (functools.partial(objectives.patches_weak_gem, power=3.0), maps, label),
        (objectives.patches_full, maps, mask),
        (objectives.map_spliced, maps, mask.astype(jnp.float32)),
        (objectives.explanation_spliced, 2 * maps[..., 1], mask.astype(jnp.float32)),
    ]:
        loss, gradient = jax.value_and_grad(objective)(x, t)
        np.testing.assert_allclose(loss, 2 * size if wrong else 0, rtol=1e-5, atol=1e-8)
        assert np.isfinite(gradient).all()
    for objective, t in [
        (objectives.attention_map_weak, label),
        (objectives.attention_full, mask),
        (objectives.attention_spliced, mask.astype(jnp.float32)),
    ]:
        loss, gradient = jax.value_and_grad(lambda x, t, f=objective: f(jax.nn.sigmoid(x), t))(
            sign * jnp.full((1, 2, 2), size), t
        )
        assert 0 <= loss <= 100
        assert (loss > 15) == wrong
        assert np.isfinite(gradient).all()


def test_binary_cross_entropy_is_pytorchs(torch):
    p = np.r_[0.0, 1e-30, 1e-12, 1e-4, 0.3, 0.5, 0.999, 1 - 1e-7, 1.0].astype(np.float32)
    for target in (0, 1):
        ours = [
            float(objectives.attention_full(jnp.full((1, 1, 1), x), jnp.full((1, 1, 1), target)))
            for x in p
        ]
        theirs = torch.nn.functional.binary_cross_entropy(
            torch.tensor(p), torch.full((len(p),), float(target)), reduction="none"
        )
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-9)
