"""Sheets of samples for tests of tasks: all rows of a small split, as an evaluation would choose among them."""

from mediax.samples import Samples, choose


def samples_of(task, images, predictions, targets, calibration, groups=None):
    """Gives all rows with their pictures, in the sections that the task's errors put them in."""
    errors = task.errors(predictions, targets, calibration, groups)
    return Samples(choose(errors), images, predictions, targets, errors, (), groups)
