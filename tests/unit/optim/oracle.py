"""The whole MuonGrokfast step in numpy float64, written from the formulas and sharing no code."""

import numpy as np

QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(u: np.ndarray, steps: int = 5) -> np.ndarray:
    norm = np.sqrt(np.sum(u * u))
    if norm == 0:
        return np.zeros_like(u)
    x = u / norm
    a, b, c = QUINTIC
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + b * (gram @ x) + c * (gram @ (gram @ x))
    return x.T if tall else x


class MuonOracle:
    """One matrix. ``step`` takes a gradient and returns the new weight."""

    def __init__(self, weight, *, lr, alpha, lamb, beta, nesterov, scale, weight_decay):
        self.weight = np.array(weight, dtype=np.float64)
        self.lr, self.alpha, self.lamb, self.beta = lr, alpha, lamb, beta
        self.nesterov, self.scale, self.weight_decay = nesterov, scale, weight_decay
        self.ema = None
        self.momentum = np.zeros_like(self.weight)

    def update(self, grad) -> np.ndarray:
        g = np.array(grad, dtype=np.float64)
        self.ema = g if self.ema is None else self.alpha * self.ema + (1 - self.alpha) * g
        filtered = g + self.lamb * self.ema
        self.momentum = self.beta * self.momentum + (1 - self.beta) * filtered
        if self.nesterov:
            return (1 - self.beta) * filtered + self.beta * self.momentum
        return self.momentum

    def step(self, grad) -> np.ndarray:
        m, n = self.weight.shape
        size = max(1.0, m / n) ** 0.5 if self.scale == "spectral" else 0.2 * max(m, n) ** 0.5
        direction = orthogonalize(self.update(grad))
        self.weight = (1 - self.lr * self.weight_decay) * self.weight - self.lr * size * direction
        return self.weight
