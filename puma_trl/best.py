"""What is measured in training, and which way round it tells a better model."""

from .errors import ConfigError


# What is measured in training → whether a model is better the greater it is; `None`: it is better for neither
IS_GREATER_BETTER = {
    **dict.fromkeys(("loss", "kl", "forward_kl", "reverse_kl", "ce", "teacher_ce"), False),
    "entropy": None,
    **dict.fromkeys(("mean_token_accuracy", "teacher_mean_token_accuracy"), True),
    **dict.fromkeys(("modality_gap", "gap"), False),
    **dict.fromkeys(("text_rich_accuracy", "vision_rich_accuracy", "agreement"), True),
}


def find_metric(name: str) -> str | None:
    """Returns the key of `IS_GREATER_BETTER` that a name stands for: `kl` for `eval_kl` and for `eval_SET_kl`."""
    found = [metric for metric in IS_GREATER_BETTER if name == metric or name.endswith(f"_{metric}")]
    return max(found, key=len, default=None)


def choose_direction(metric: str, given: bool | None) -> bool | None:
    """
    Returns whether a model is better the greater a metric is.

    Args:
        metric (`str`):
            The `metric_for_best_model`.
        given (`bool`, *optional*):
            The `greater_is_better` that was given. For metrics that are not ours it holds.

    Raises:
        ConfigError: if it contradicts the metric, or is missing where only the user can tell.
    """
    name = find_metric(metric)
    if name is None:
        return given
    right = IS_GREATER_BETTER[name]
    if right is None and given is None:
        raise ConfigError(
            f"`metric_for_best_model: {metric}` alone does not say which model is better. Set `greater_is_better`."
        )
    if right is not None and given not in (None, right):
        word = str(right).lower()
        raise ConfigError(
            f"`greater_is_better: {str(given).lower()}` contradicts `metric_for_best_model: {metric}`, which is "
            f"better the {'greater' if right else 'smaller'} it is. Set `greater_is_better: {word}`, or leave it out."
        )
    return given if right is None else right
