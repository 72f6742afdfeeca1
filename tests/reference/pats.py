"""PATS, Equations 1-5, over all tensors of a model at once, in float64 and the paper's symbols."""

import numpy as np

from tests.reference import adamax, noise


def new_state(theta):
    return {**adamax.new_state(theta), "s_bar": np.zeros_like(theta)}


def pats_step(thetas, gradients, states, eta, *, update=adamax.direction, optimizer=None, **rule):
    """One step of every tensor. Keys are the tensors' paths; returns the new values, changes the states."""
    r = {
        "lam": 5e-3, "gamma": 1e-6, "beta": 0.75, "p": 0.5, "eps": 1e-12, "seed": 0, "noise_times_lr": True,
        "threshold_mode": "absolute", "mean_scope": "tensor", "mask_scope": "element", "max_ratio": None,
        "spread": None, **rule,
    }  # fmt: skip
    optimizer = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "w": 0.01, "rule": "mtdnn", **(optimizer or {})}
    for path, theta in thetas.items():
        s = np.abs(theta * gradients[path])  # Eq. 1
        states[path]["s_bar"] = r["beta"] * states[path]["s_bar"] + (1 - r["beta"]) * s  # Eq. 2
    means = {path: states[path]["s_bar"].mean() for path in thetas}  # Eq. 3
    if r["mean_scope"] == "model":
        whole = np.concatenate([states[path]["s_bar"].ravel() for path in thetas]).mean()
        means = dict.fromkeys(thetas, whole)
    result = {}
    for path, theta in thetas.items():
        s_bar, s_tilde = states[path]["s_bar"], means[path]
        ratio = s_tilde / (s_bar + r["eps"])
        sigma = r["lam"] * (ratio if r["max_ratio"] is None else np.minimum(ratio, r["max_ratio"]))  # Eq. 4
        sigma[spared(r["threshold_mode"], r["gamma"], s_bar, s_tilde, ratio)] = 0.0
        if r["spread"] == "uniform":
            sigma[...] = np.sqrt((sigma**2).mean())
        elif r["spread"] is not None:  # path -> by how many entries the sizes are moved along
            sigma = np.roll(sigma.ravel(), r["spread"][path]).reshape(sigma.shape)
        d = update(theta, gradients[path], states[path], **optimizer)
        t = states[path]["t"]
        z = sigma * noise.normals(r["seed"], t, path, theta.size).reshape(theta.shape)
        if r["mask_scope"] == "element":
            b = noise.mask_bits(r["seed"], t, path, theta.size).reshape(theta.shape) < round(r["p"] * 4096)
        else:
            b = noise.tensor_mask_bits(r["seed"], t, path) < round(r["p"] * 4096)
        result[path] = theta - eta * d - (eta if r["noise_times_lr"] else 1.0) * b * z  # Eq. 5
    return result


def spared(mode, gamma, s_bar, s_tilde, ratio):
    if mode == "absolute":
        return s_bar >= gamma
    if mode == "relative":
        return s_bar >= gamma * s_tilde
    if mode == "ratio":
        return ratio < gamma
    return np.zeros(s_bar.shape, bool)
