"""Measure a model on prepared data: accuracy, AUC, logloss, normalized entropy, calibration."""

import json


def add_arguments(parser) -> None:
    parser.add_argument("--data", required=True, help="folder made by dlrm-tf prepare")
    parser.add_argument("--weights", required=True, help="a .weights.h5 file")
    parser.add_argument("--split", choices=("test", "train"), default="test")
    parser.add_argument("--batch-size", type=int, default=8192, help="rows a step; does not change the result")
    parser.add_argument(
        "--streaming", action="store_true", help="AUC from 8000 thresholds in constant memory (for more rows than memory holds)"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def run(args) -> None:
    from dlrm_tf.train.evaluate import evaluate

    result = evaluate(args.data, args.weights, args.split, args.batch_size, not args.streaming, args.quiet)
    if args.json:
        print(json.dumps(result))
        return
    bins = result.pop("calibration_bins", [])
    for name, value in result.items():
        print(f"{name:<20}{'undefined' if value is None else f'{value:,}' if name == 'rows' else f'{value:.6f}'}")
    if bins:
        print("calibration by prediction (bins of equal counts)\n      rows  mean prediction  mean label")
    for part in bins:
        print(f"{part['rows']:>10,}  {part['mean_prediction']:>15.6f}  {part['mean_label']:>10.6f}")
