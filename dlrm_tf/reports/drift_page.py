"""What `drift` found, as lines of text and as a page."""

from collections.abc import Sequence
from typing import Any, Optional, Union

import numpy as np

from dlrm_tf.errors import require
from dlrm_tf.files import StrPath, write_file
from dlrm_tf.fresh.figures import Bin, Drift, FeatureDrift
from dlrm_tf.fresh.psi import LARGE, SOME
from dlrm_tf.reports.data_page import page_suffix
from dlrm_tf.reports.picture_page import picture_page, png

_COLORS = "#3b6ea5", "#c8733c"  # of A and B


def drift_lines(found: Drift) -> list[str]:
    """The figures as a table, the feature with the largest index first, and what moved in those that have changed.

    Args:
      found: what `drift` returned.
    """
    lines = [
        f"{side} {name}: {rows:,} rows, {_share(rate)} positive"
        for side, name, rows, rate in zip("AB", found.names, found.rows, found.label_rate)
    ]
    if found.skipped[0]:
        lines.append(f"  {found.skipped[0]:,} requests skipped: {found.skipped[1]}")
    head = f"  {'feature':<16}{'PSI':>9}{'':>7}{'by chance':>11}{'missing A':>11}{'missing B':>11}"
    lines.append(f"{head}{'new':>9}{'unknown':>9}{'keys A':>13}{'keys B':>13}")
    ordered = sorted(found.features, key=lambda feature: -feature.psi)
    lines += [_feature_line(feature) for feature in ordered]
    lines.append(f"PSI: below {SOME} little has changed, above {LARGE} much has (a rule of thumb); by chance: without any change")
    lines.append("new: keys of B that A's rows do not have; unknown: that A's vocabulary does not have; shares of B's keys")
    for feature in (feature for feature in ordered if feature.psi >= SOME):
        lines.append(f"  {feature.name}: " + "; ".join(_bin_text(part) for part in feature.moved))
    return lines + (_score_lines(found) if found.score else [])


def _feature_line(feature: FeatureDrift) -> str:
    mark = "much" if feature.psi > LARGE else "some" if feature.psi >= SOME else ""
    missing = "".join(f"{_share(share):>11}" for share in feature.missing)
    line = f"  {feature.name:<16}{feature.psi:>9.4f}{mark:>7}{feature.noise:>11.4f}{missing}"
    if feature.keys is None:
        return line
    return line + f"{_share(feature.new):>9}{_share(feature.unknown):>9}" + "".join(f"{count:>13,}" for count in feature.keys)


def _score_lines(found: Drift) -> list[str]:
    score = found.score
    assert score is not None
    calibration = [f"{value:.4f}" if value is not None else "?" for value in score.calibration]
    rows = " and ".join(f"{count:,}" for count in score.rows)
    return [
        f"score: PSI {score.psi:.4f} (by chance {score.noise:.4f}) over the deciles of A, of {rows} rows",
        f"  mean probability {score.mean[0]:.6f} -> {score.mean[1]:.6f}, calibration {calibration[0]} -> {calibration[1]}",
    ]


def _bin_text(part: Bin) -> str:
    return f"{part.name} {part.share[0]:.2%} -> {part.share[1]:.2%}"


def _share(share: Optional[float]) -> str:
    return "?" if share is None else f"{share:.2%}"


def write_drift_page(found: Drift, path: StrPath) -> None:
    """Writes the page; it appears whole or not at all.

    Args:
      found: what `drift` returned.
      path: `.html` (figure and table in one file, nothing loaded from elsewhere) or `.png` (the figure).

    Raises:
      MissingExtraError: matplotlib is not installed.
      UsageError: another suffix.
    """
    suffix = page_suffix(path)
    picture = png(_figure(found))
    content: Union[str, bytes] = picture
    if suffix == ".html":
        alt, text = "population stability index, new keys, missing cells, scores", "\n".join(drift_lines(found))
        content = picture_page(f"drift: {found.names[0]} to {found.names[1]}", picture, alt=alt, text=text)
    write_file(path, content)


def _figure(found: Drift) -> Any:
    """Four panels, as a matplotlib figure."""
    figure = require("matplotlib.figure", "report").Figure(figsize=(13, 8), layout="constrained")
    index, new, missing, score = figure.subplots(2, 2).flat
    names = [feature.name for feature in found.features]
    _bars(index, names, [[feature.psi for feature in found.features]], _COLORS[1:])
    for level in (SOME, LARGE):
        index.axhline(level, color="#999999", linestyle="--")
    index.set_title(f"population stability index (lines: {SOME}, {LARGE})")

    keyed = [feature for feature in found.features if feature.new is not None]
    _bars(new, [feature.name for feature in keyed], [[100 * (feature.new or 0) for feature in keyed]], _COLORS[1:])
    new.set_title("keys of B that A's rows do not have, %")

    shares = [[100 * (feature.missing[side] or 0) for feature in found.features] for side in (0, 1)]
    _bars(missing, names, shares, _COLORS)
    missing.set_title("missing cells, % (blue: A, orange: B)")

    if found.score:
        deciles = found.score.deciles
        _bars(score, [part.name for part in deciles], [[100 * part.share[side] for part in deciles] for side in (0, 1)], _COLORS)
        score.set_title("model's probability, % of rows (blue: A, orange: B)")
    else:
        score.set_axis_off()
    return figure


def _bars(axes: Any, names: Sequence[str], groups: Sequence[Sequence[float]], colors: Sequence[str]) -> None:
    width = 0.8 / len(groups)
    for i, (values, color) in enumerate(zip(groups, colors)):
        axes.bar(np.arange(len(names)) + (i + 0.5) * width - 0.4, values, width, color=color)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
