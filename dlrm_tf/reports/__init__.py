"""Pages and pictures: of prepared data, of a training run, of an export's sizes, of the demo."""
