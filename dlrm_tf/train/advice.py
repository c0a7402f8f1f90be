"""What a finished run's figures say went wrong, one line each with what to do."""

from collections.abc import Iterator, Sequence
from typing import Any, Optional

from dlrm_tf.data.records import VALIDATION, Records
from dlrm_tf.probability import constant_logloss
from dlrm_tf.train.options import ResolvedOptions
from dlrm_tf.train.stopping import best_entry, measured

# Fewer optimizer steps than this leave every optimizer here near where it began: 4 steps of 2,048 rows on 8,400 rows of Criteo
# gave a logloss above the constant's.
FEW_STEPS = 100
# Loglosses closer than this, in nats, are not told apart.
_MARGIN = 1e-4


def base_rate(records: Records) -> float:
    """Mean label of the rows that `prepare` gave to the train split."""
    counts = records.manifest["counts"]
    return counts["positives"]["train"] / counts["rows"]["train"]


def advice(
    history: Sequence[dict[str, Any]], test: Optional[dict[str, Any]], options: ResolvedOptions, records: Records
) -> Iterator[str]:
    """Lines about a finished run.

    Args:
      history: `Trained.history`.
      test: `Trained.test`.
      options: the run's options, with the recipe's values.
      records: the data, with its validation split.

    Yields:
      Few steps, overfitting, a validation that got worse, a model that is no better than a constant.
    """
    if not history:
        return
    rows, batch, steps = records.rows("train"), options.batch_size, history[-1]["step"]
    if steps < FEW_STEPS and options.weights is None and rows * options.epochs > FEW_STEPS:
        wanted = max(1, rows * options.epochs // FEW_STEPS)
        yield (
            f"few steps: {rows:,} rows in batches of {batch:,} made {steps} optimizer steps, too few to learn from: take "
            f"--batch-size {1 << (wanted.bit_length() - 1)} or smaller, more epochs, or more rows"
        )
    best, seen = best_entry(history), measured(history)
    if best and best is not seen[-1]:
        last = seen[-1]
        rise = last["validation"]["logloss"] - best["validation"]["logloss"]
        falls = last["loss"] < best["loss"] - _MARGIN
        where = f"epoch {best['epoch']} (step {best['step']:,})"
        if rise > _MARGIN and falls:
            yield (
                f"overfitting: from {where} to step {last['step']:,} the training loss fell from {best['loss']:.4f} to "
                f"{last['loss']:.4f} while the validation logloss rose from {best['validation']['logloss']:.4f} to "
                f"{last['validation']['logloss']:.4f}; best.weights.h5 has {where}. Click models often overfit as soon as the "
                f"second epoch begins (arXiv 2209.06053): take --epochs {best['epoch']}, "
                "prepare --min-count 10, --l2 1e-5, or the experiment --reset-table-each-epoch"
            )
        else:
            yield (
                f"the validation logloss was lowest after {where}, {best['validation']['logloss']:.4f}, and "
                f"{last['validation']['logloss']:.4f} at the end; best.weights.h5 has {where}: a lower learning rate or "
                "--decay 1 may go further"
            )
    rate = base_rate(records)
    for name, figures in (("test", test), (VALIDATION, best and best["validation"])):
        if figures:
            constant = constant_logloss(rate, figures["mean_label"])
            if figures["logloss"] > constant + _MARGIN:
                yield (
                    f"worse than a constant: the best weights have a logloss of {figures['logloss']:.4f} on the {name} rows, the "
                    f"training rows' click rate for every row {constant:.4f}: more steps (smaller batches), a lower learning "
                    "rate, or more rows are needed"
                )
            break
