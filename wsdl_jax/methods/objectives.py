"""The training objectives: pure functions of network outputs and targets.

Labels are 0 = real and 1 = fake; in masks 1 = manipulated. Every objective is a mean over images,
so that an optional `weight` [B] of zeros and ones leaves padding out exactly. B is the batch.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from wsdl_jax.methods.pooling import locations_of

Scalar = Float[Array, ""]
# The published code adds this to the logarithm of the mean probabilities, both classes alike. A
# softmax does not see a constant, so it changes neither loss nor gradient; it is written down
# because a reader who compares the two codes will look for it.
AVERAGE_OFFSET = 0.7


def _mean(per_image: Float[Array, " b"], weight: Float[Array, " b"] | None) -> Scalar:
    if weight is None:
        return per_image.mean()
    return (per_image * weight).sum() / jnp.maximum(weight.sum(), 1)


def image_cross_entropy(
    image_logits: Float[Array, "b 2"],
    labels: Int[Array, " b"],
    weight: Float[Array, " b"] | None = None,
) -> Scalar:
    """Returns the cross-entropy of image logits: weak Grad-CAM, first term of weak Attention."""
    per_image = optax.softmax_cross_entropy_with_integer_labels(image_logits, labels)
    return _mean(per_image, weight)


def patches_weak(
    map_logits: Float[Array, "b h w 2"],
    labels: Int[Array, " b"],
    weight: Float[Array, " b"] | None = None,
) -> Scalar:
    """Returns the cross-entropy of every location against its image's label."""
    return patches_full(
        map_logits, jnp.broadcast_to(labels[:, None, None], map_logits.shape[:3]), weight
    )


def patches_weak_max(
    map_logits: Float[Array, "b h w 2"],
    labels: Int[Array, " b"],
    weight: Float[Array, " b"] | None = None,
) -> Scalar:
    """Returns the cross-entropy of the location that looks most fake: largest logit difference."""
    flat = map_logits.reshape(map_logits.shape[0], -1, 2)
    worst = jnp.argmax(flat[..., 1] - flat[..., 0], axis=1)
    chosen = jnp.take_along_axis(flat, worst[:, None, None], axis=1)[:, 0]
    return image_cross_entropy(chosen, labels, weight)


def patches_weak_average(
    map_logits: Float[Array, "b h w 2"],
    labels: Int[Array, " b"],
    weight: Float[Array, " b"] | None = None,
) -> Scalar:
    """Returns the cross-entropy of log(mean probability) + 0.7, taken as image logits.

    The mean is over the locations of an image.
    """
    flat = map_logits.reshape(map_logits.shape[0], -1, 2)
    # log of a mean of probabilities, in a form that stays finite where one underflows.
    log_mean = jax.nn.logsumexp(jax.nn.log_softmax(flat), axis=1) - jnp.log(flat.shape[1])
    return image_cross_entropy(log_mean + AVERAGE_OFFSET, labels, weight)


def mean_logit_weak(
    map_logits: Float[Array, "b h w 2"],
    labels: Int[Array, " b"],
    weight: Float[Array, " b"] | None = None,
) -> Scalar:
    """Returns the cross-entropy of the mean of the locations' logit differences.

    It is the binary cross-entropy of the mean logit, where a location has a single one.
    """
    return _difference_cross_entropy(_differences(map_logits).mean(1), labels, weight)


def patches_weak_lse(
    map_logits: Float[Array, "b h w 2"],
    labels: Int[Array, " b"],
    weight: Float[Array, " b"] | None = None,
    *,
    sharpness: float,
) -> Scalar:
    """Returns the cross-entropy of a smooth maximum of the locations' logit differences.

    After Pinheiro and Collobert (2015), who pool scores before the softmax as well: the image's
    logit is log(mean(exp(r x))) / r, over the logit differences x of its locations.

    Args:
      map_logits: class scores of every location, [real, fake].
      labels: of the images.
      weight: of the images.
      sharpness: r, above 0: towards 0 the mean of the differences, towards infinity their maximum.
    """
    differences = _differences(map_logits)
    pooled = jax.nn.logsumexp(sharpness * differences, axis=1) - jnp.log(differences.shape[1])
    return _difference_cross_entropy(pooled / sharpness, labels, weight)


def patches_weak_topk(
    map_logits: Float[Array, "b h w 2"],
    labels: Int[Array, " b"],
    weight: Float[Array, " b"] | None = None,
    *,
    topk: float,
) -> Scalar:
    """Returns the cross-entropy of the mean of the largest logit differences of the locations.

    Scores are pooled before the softmax, as Durand et al. (2016) do, who select the highest.

    Args:
      map_logits: class scores of every location, [real, fake].
      labels: of the images.
      weight: of the images.
      topk: share of the locations whose mean is taken, in (0, 1]; at least one.
    """
    differences = _differences(map_logits)
    highest, _ = jax.lax.top_k(differences, locations_of(topk, differences.shape[1]))
    return _difference_cross_entropy(highest.mean(1), labels, weight)


def patches_weak_gem(
    map_logits: Float[Array, "b h w 2"],
    labels: Int[Array, " b"],
    weight: Float[Array, " b"] | None = None,
    *,
    power: float,
) -> Scalar:
    """Returns the cross-entropy of the generalized mean of the locations' probabilities.

    The generalized mean (Radenović et al., 2019) is of numbers that are not negative, so that
    probabilities of "fake" are pooled here: mean(p ** power) ** (1 / power).

    Args:
      map_logits: class scores of every location, [real, fake].
      labels: of the images.
      weight: of the images.
      power: at least 1, which is `patches_weak_average`; towards infinity, the maximum.
    """
    # Both sides of the cross-entropy are logarithms throughout, that of "real" from complements:
    # of a probability that is rounded to 1 nothing could be learnt.
    differences = _differences(map_logits)
    log_count = jnp.log(differences.shape[1])
    log_powers = -power * jax.nn.softplus(-differences)
    log_rests = _log_one_minus_power(differences, power)
    log_rest = jax.nn.logsumexp(log_rests, axis=1) - log_count  # of 1 - mean(p ** power)
    rest = jnp.exp(log_rest)
    is_high = rest < 0.5
    log_mean = jnp.where(
        is_high,
        jnp.log1p(-jnp.where(is_high, rest, 0)),
        jax.nn.logsumexp(log_powers, axis=1) - log_count,
    )
    # 1 - (1 - rest) ** (1 / power), by its series where the rest is small.
    is_small = rest < 1e-3
    by_series = log_rest - math.log(power) + (1 - 1 / power) / 2 * rest
    log_fake = log_mean / power
    log_real = jnp.log(-jnp.expm1(jnp.where(is_small, -1, log_fake)))
    log_real = jnp.where(is_small, by_series, log_real)
    return image_cross_entropy(jnp.stack([log_real, log_fake], axis=-1), labels, weight)


def _differences(map_logits: Float[Array, "b h w 2"]) -> Float[Array, "b n"]:
    flat = map_logits.reshape(map_logits.shape[0], -1, 2)
    return flat[..., 1] - flat[..., 0]


def _difference_cross_entropy(
    differences: Float[Array, " b"], labels: Array, weight: Array | None
) -> Scalar:
    logits = jnp.stack([jnp.zeros_like(differences), differences], axis=-1)
    return image_cross_entropy(logits, labels, weight)


def _log_one_minus_power(differences: Array, power: float) -> Array:
    """Returns log(1 - sigmoid(x) ** power), whose value and gradient are finite for any x."""
    minus_log = power * jax.nn.softplus(-differences)
    is_small = minus_log < 1e-3
    # There softplus(-x) is exp(-x) but for its next term; exp(-x) itself underflows.
    large = jnp.where(is_small, differences, 0)
    by_series = math.log(power) - large - jnp.exp(-large) / 2 - minus_log / 2
    direct = jnp.log(-jnp.expm1(-jnp.where(is_small, 1, minus_log)))
    return jnp.where(is_small, by_series, direct)


def patches_full(
    map_logits: Float[Array, "b h w 2"],
    masks: Int[Array, "b h w"],
    weight: Float[Array, " b"] | None = None,
) -> Scalar:
    """Returns the cross-entropy of every location against the mask: Patches and FCN, setup C."""
    # With integer labels, optax takes the label's logit out of its axis; the gradient of that is a
    # scatter of constants, which XLA computes when it compiles: a minute for 64 maps of 256×256.
    per_location = optax.softmax_cross_entropy(map_logits, jax.nn.one_hot(masks, 2))
    return _mean(per_location.mean((1, 2)), weight)


def map_spliced(
    map_logits: Float[Array, "b h w 2"],
    shares: Float[Array, "b h w"],
    weight: Float[Array, " b"] | None = None,
    *,
    fake_weight: float = 1.0,
) -> Scalar:
    """Returns the cross-entropy of every location against the share of it that is fake.

    Where the shares are those of whole images, 0 or 1, it is `patches_weak`.

    Args:
      map_logits: class scores of every location, [real, fake].
      shares: in [0, 1].
      weight: of the images.
      fake_weight: factor of the fake side of each location's loss. Splicing makes fewer locations
        fake than real; over 1 it moves the probability of one half to where fewer fake locations
        are missed.
    """
    real, fake = jnp.moveaxis(jax.nn.log_softmax(map_logits), -1, 0)
    per_location = -(fake_weight * shares * fake + (1 - shares) * real)
    return _mean(per_location.mean((1, 2)), weight)


def patches_partly_known(
    map_logits: Float[Array, "b h w 2"],
    labels: Int[Array, " b"],
    shares: Float[Array, "b h w"],
    weight: Float[Array, " b"] | None = None,
    *,
    unknown: Callable[[Array, Array, Array], Scalar],
) -> Scalar:
    """Returns the mean loss of images of which some are known to be fake in a given region.

    Of real images, and of those that were made from them, every location is known, and their loss
    is `map_spliced`; of partial fakes only the label is.

    Args:
      map_logits: class scores of every location, [real, fake].
      labels: of the images.
      shares: in [0, 1]; NaN in images of which they are not known.
      weight: of the images, 0 or 1.
      unknown: the objective of those others, (map logits, labels, weight) → a mean over images.
    """
    is_known = ~jnp.isnan(shares).any((1, 2))
    weight = jnp.ones(labels.shape, map_logits.dtype) if weight is None else weight
    located, pooled = weight * is_known, weight * ~is_known
    shares = jnp.where(is_known[:, None, None], shares, 0)
    # Both objectives are means over their images, and 0 where there are none.
    return (
        located.sum() * map_spliced(map_logits, shares, located)
        + pooled.sum() * unknown(map_logits, labels, pooled)
    ) / jnp.maximum(weight.sum(), 1)


def explanation_spliced(
    evidence: Float[Array, "b h w"],
    shares: Float[Array, "b h w"],
    weight: Float[Array, " b"] | None = None,
    *,
    fake_weight: float = 1.0,
) -> Scalar:
    """Returns the binary cross-entropy of every location of an explanation taken as logits.

    Arguments are those of `map_spliced`, but for the evidence, see `explanation.evidence`.
    """
    map_logits = jnp.stack([jnp.zeros_like(evidence), evidence], axis=-1)
    return map_spliced(map_logits, shares, weight, fake_weight=fake_weight)


def _binary_cross_entropy(probability: Array, target: Array, fake_weight: float = 1.0) -> Array:
    # PyTorch's binary cross-entropy bounds both logarithms at -100, which saturated sigmoids reach.
    # The inner bounds keep infinite slopes out of the gradient.
    tiny = jnp.finfo(probability.dtype).tiny
    log_true = jnp.where(probability < tiny, -100, jnp.log(jnp.maximum(probability, tiny)))
    certain = probability == 1
    log_false = jnp.where(certain, -100, jnp.log1p(-jnp.where(certain, 0, probability)))
    return -(fake_weight * target * log_true + (1 - target) * log_false)


def attention_map_weak(
    attention: Float[Array, "b h w"],
    labels: Int[Array, " b"],
    weight: Float[Array, " b"] | None = None,
) -> Scalar:
    """Returns the binary cross-entropy of a learned mask's maximum against the image's label."""
    return _mean(_binary_cross_entropy(attention.max((1, 2)), labels), weight)


def attention_full(
    attention: Float[Array, "b h w"],
    masks: Int[Array, "b h w"],
    weight: Float[Array, " b"] | None = None,
) -> Scalar:
    """Returns the binary cross-entropy of every location of a learned mask against the true one."""
    return _mean(_binary_cross_entropy(attention, masks).mean((1, 2)), weight)


def attention_spliced(
    attention: Float[Array, "b h w"],
    shares: Float[Array, "b h w"],
    weight: Float[Array, " b"] | None = None,
    *,
    fake_weight: float = 1.0,
) -> Scalar:
    """Returns the binary cross-entropy of every location of a learned mask against its share.

    Arguments are those of `map_spliced`, but for the mask, in [0, 1]. Both logarithms are bounded
    at -100, as they are in `attention_full`.
    """
    return _mean(_binary_cross_entropy(attention, shares, fake_weight).mean((1, 2)), weight)
