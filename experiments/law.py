"""
A law of what mSGDW lacks on L-DNT against AdamW, by length, width and vocabulary, and one point predicted by it.

    python -m experiments.reproduce law          the points, after language_grid
    python -m experiments.law --predict=True     fit them, write the prediction of one more to results/law_prediction.json
    python -m experiments.reproduce law_fifth    and only then run it
    python -m experiments.law                    the table: predicted beside measured

The gap of an arm is its validation loss minus AdamW's, seed by seed, in nats per token. Two forms are fitted by least
squares, with x the logarithms to base 2 of tokens, width and vocabulary (as multiples of the first point's): gap = a + b x, and log
gap = a + b x where all gaps are above 0.
"""

import json
import math
import os
import statistics
from datetime import datetime

import numpy as np

from configurator import configure, fail
from experiments import searches
from experiments.reproduce import mean_spread, read_all
from experiments.searches import LAW_ARMS, fifth_point, key, law_points, law_runs

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
    """(prediction(point), coefficients: at the first point and for each doubling, root mean square of what is left)."""
    def x(point):
        return [1, *(math.log2(a / b) for a, b in zip(axes_of(point), axes_of(points[0])))]
    X = np.array([x(point) for point in points])
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


if __name__ == '__main__':
    configure(globals())
    done, fifth = read_all(), fifth_point()
    points = [point for point in law_points() if all(losses(arm, point, done) for arm in LAW_ARMS)]
    if predict:
        if len(points) < len(law_points()):
            fail(f'{len(law_points()) - len(points)} points are missing: python -m experiments.reproduce law runs them')
        begun = [row for row in done.values() if (row['run'].get('dataset'), row['run'].get('n_embd'), row['run'].get('max_iters'))
                 == fifth]
        if begun or os.path.exists(searches.PREDICTION):
            fail(f'{searches.PREDICTION} stands' if not begun else f'{begun[0]["run"]} was run already: a prediction comes before it')
    fits = {arm: forms(points, [statistics.fmean(gaps(arm, point, done)) for point in points])
            for arm in LAW_ARMS[1:]} if len(points) > 4 else {}
    if predict:
        with open(searches.PREDICTION, 'w', encoding='utf-8') as f:
            json.dump({'date': datetime.now().isoformat(' ', 'seconds'), 'point': fifth, 'points': len(points), 'gaps': {
                arm: {form: said(fifth) for form, (said, *_) in of_arm.items()} for arm, of_arm in fits.items()}}, f, indent=2)
    print('| data | ' + ' | '.join(AXES) + ' | ' + ' | '.join([LAW_ARMS[0], *(f'{arm}, gap' for arm in LAW_ARMS[1:])]) + ' |\n|---'
          + '|---' * (len(AXES) + len(LAW_ARMS)) + '|')
    for point in points + [fifth] * bool(losses(LAW_ARMS[1], fifth, done)):
        print(f'| {point[0]} | ' + ' | '.join(f'{a:,}' for a in axes_of(point)) + f' | {mean_spread(losses(LAW_ARMS[0], point, done))} | '
              + ' | '.join(mean_spread(gaps(arm, point, done), '+') for arm in LAW_ARMS[1:]) + ' |')
    for arm, of_arm in fits.items():
        for form, (_, (first, *each), left) in of_arm.items():
            say = (lambda v: f'{math.exp(v):.3f}') if form == 'power' else (lambda v: f'{v:+.4f}')
            print(f'\n{arm}, {form}: gap {say(first)} at the first point' + ''.join(
                f'{", times" if form == "power" else ","} {say(b)} for each doubling of {axis}' for b, axis in zip(each, AXES))
                + f'; root mean square of what is left {left:.4f}' + ' of log gap' * (form == 'power'))
    if os.path.exists(searches.PREDICTION):
        with open(searches.PREDICTION, encoding='utf-8') as f:
            said = json.load(f)
        print(f'\nPredicted {said["date"]} from {said["points"]} points, measured afterwards: {tuple(said["point"])}\n\n'
              '| arm | form | predicted gap | measured |\n|---|---|---|---|')
        for arm, of_arm in said['gaps'].items():
            measured = gaps(arm, tuple(said['point']), done)
            for form, value in of_arm.items():
                print(f'| {arm} | {form} | {value:+.4f} | {mean_spread(measured, "+") if measured else "not run"} |')
