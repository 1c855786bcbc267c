"""
A law of the gap between mSGDW and AdamW on L-DNT by length, width and vocabulary, and one point predicted by
it.

    python -m experiments.reproduce law          the points, after language_grid
    python -m experiments.law --predict=True     the prediction of one more, to results/law_prediction.json
    python -m experiments.reproduce law_fifth    and only then run it
    python -m experiments.law                    the table: predicted beside measured

The gap of an arm is its validation loss minus AdamW's, seed by seed, in nats per token. Two forms are fitted
by least squares: gap = a + b x, and log gap = a + b x where all gaps are above 0. x are the logarithms to
base 2 of tokens, width and vocabulary, as multiples of the first point's. A token of a larger vocabulary is
more bytes: part of what the vocabulary does to a gap is this unit, and as many tokens are more text.
"""

import json
import math
import os
import statistics
from datetime import datetime

import numpy as np

from configurator import configure
from experiments import searches
from experiments.reproduce import mean_spread, read_all
from experiments.searches import LAW_ARMS, fifth_point, key, law_points, law_runs
from support.console import fail

predict = False  # True: write the prediction, once
AXES = 'tokens', 'width', 'vocabulary'


def axes_of(point):
    dataset, width, iters = point
    return iters * 1024, width, next(size for size, name in searches.DATA.items() if name == dataset)


def losses(variant, point, done):
    """Those of the seeds, or [] where the point is not finished."""
    todo, runs = law_runs(variant, point, done)
    finished = not todo and all(key(run) in done for run in runs)
    return [done[key(run)]['val_loss'] for run in runs] if finished else []


def gaps(variant, point, done):
    return [a - b for a, b in zip(losses(variant, point, done), losses(LAW_ARMS[0], point, done))]


def fit(points, values):
    """(prediction(point), coefficients at the first point and for each doubling, rms of what is left)."""
    def x(point):
        return [1, *(math.log2(a / b) for a, b in zip(axes_of(point), axes_of(points[0])))]
    X = np.array([x(point) for point in points])
    if not np.isfinite(values).all():
        fail('A run of the law has diverged, so no line can be fitted.')
    coefficients = np.linalg.lstsq(X, np.array(values), rcond=None)[0]
    left = np.sqrt(np.mean((X @ coefficients - values) ** 2))
    return lambda point: float(x(point) @ coefficients), coefficients.tolist(), float(left)


def forms(points, values):
    """{form: (prediction(point), coefficients, what is left)} of one arm."""
    found = {'logarithm': fit(points, values)}
    if min(values) > 0:
        power, *rest = fit(points, np.log(values))
        found['power'] = (lambda point: math.exp(power(point)), *rest)
    return found


def write_prediction(done, points, fits):
    """Once, from all points, and before the fifth is begun."""
    point, missing = fifth_point(), len(law_points()) - len(points)
    if missing:
        fail(f'{missing} points are missing. Run python -m experiments.reproduce law.')
    for run in (row['run'] for row in done.values()):
        if (run.get('dataset'), run.get('n_embd'), run.get('max_iters')) == point:
            fail(f'{run} was run already. A prediction must come before its run.')
    if os.path.exists(searches.PREDICTION):
        fail(f'{searches.PREDICTION} exists already.')
    said = {arm: {form: prediction(point) for form, (prediction, *_) in of_arm.items()} for arm,
            of_arm in fits.items()}
    with open(searches.PREDICTION, 'w', encoding='utf-8') as f:
        json.dump({'date': datetime.now().isoformat(' ', 'seconds'), 'point': point, 'points': len(points),
                   'gaps': said},
                  f, indent=2)


def print_points(done, points):
    head = ['data', *AXES, LAW_ARMS[0], *(f'{arm}, gap' for arm in LAW_ARMS[1:])]
    print('| ' + ' | '.join(head) + ' |\n' + '|---' * len(head) + '|')
    for point in points:
        cells = [point[0], *(f'{a:,}' for a in axes_of(point)), mean_spread(losses(LAW_ARMS[0], point, done)),
                 *(mean_spread(gaps(arm, point, done), '+.4f') for arm in LAW_ARMS[1:])]
        print('| ' + ' | '.join(cells) + ' |')


def print_fits(fits):
    for arm, of_arm in fits.items():
        for form, (_, (first, *each), left) in of_arm.items():
            power = form == 'power'
            say = (lambda v: f'{math.exp(v):.3f}') if power else (lambda v: f'{v:+.4f}')
            print(f'\n{arm}, {form}: gap {say(first)} at the first point'
                  + ''.join(f', {"times " * power}{say(b)} for each doubling of {axis}' for b,
                            axis in zip(each, AXES))
                  + f'; root mean square of what is left {left:.4f}' + ' of log gap' * power)


def print_prediction(done):
    with open(searches.PREDICTION, encoding='utf-8') as f:
        said = json.load(f)
    point = tuple(said['point'])
    print(f'\nPredicted {said["date"]} from {said["points"]} points: {" ".join(map(str, point))} updates\n\n'
          '| arm | form | predicted gap | measured |\n|---|---|---|---|')
    for arm, of_arm in said['gaps'].items():
        for form, value in of_arm.items():
            measured = mean_spread(gaps(arm, point, done), '+.4f') or 'not run'
            print(f'| {arm} | {form} | {value:+.4f} | {measured} |')


if __name__ == '__main__':
    configure(globals())
    done = read_all()
    points = [point for point in law_points() if all(losses(arm, point, done) for arm in LAW_ARMS)]
    fits = {arm: forms(points, [statistics.fmean(gaps(arm, point, done)) for point in points])
            for arm in LAW_ARMS[1:]} if len(points) == len(law_points()) else {}
    if predict:
        write_prediction(done, points, fits)
    print_points(done, points + [fifth_point()] * bool(losses(LAW_ARMS[1], fifth_point(), done)))
    print_fits(fits)
    if os.path.exists(searches.PREDICTION):
        print_prediction(done)
