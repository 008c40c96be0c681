"""The links of which optimizers are chains."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from surgery.training.optimizers.updating import Clock, Link, Updates, Updating

__all__ = [
    "adadelta_scaling",
    "adagrad_scaling",
    "adam_scaling",
    "adamax_scaling",
    "clip_each_norm",
    "clip_norm",
    "clip_value",
    "decoupled_decay",
    "lion_sign",
    "nadam_scaling",
    "regularization",
    "rms_scaling",
    "trace",
]


def clip_value(limit: float) -> Link:
    """Brings each number of the gradient between −limit and limit."""

    def link(u: Updating, gradient: ir.Value) -> ir.Value:
        return u.op.Clip(gradient, u.op.constant(np.float32(-limit)), u.op.constant(np.float32(limit)))

    return link


def clip_each_norm(limit: float) -> Link:
    """g · min(1, limit / ‖g‖), each parameter by itself (Keras' ``clipnorm``)."""

    def link(u: Updating, gradient: ir.Value) -> ir.Value:
        return u.op.Mul(gradient, u.scalar(_clipping(u.all, [gradient], limit)))

    return link


def clip_norm(limit: float) -> Link:
    """g · min(1, limit / ‖all gradients‖) (Pascanu et al. 2013; Keras' ``global_clipnorm``). The first of its chain."""

    def link(u: Updating, gradient: ir.Value) -> ir.Value:
        factor = u.all.once("clip_norm", lambda: _clipping(u.all, u.all.gradients, limit))
        return u.op.Mul(gradient, u.scalar(factor))

    return link


def _clipping(updates: Updates, gradients: list[ir.Value], limit: float) -> ir.Value:
    """min(1, limit / (‖gradients‖ + 1e-6)), as PyTorch's ``clip_grad_norm_`` has it."""
    op = updates.op
    squares = [op.ReduceSumSquare(gradient, keepdims=0) for gradient in gradients]
    norm = op.Add(op.Sqrt(op.Sum(*squares) if len(squares) > 1 else squares[0]), 1e-6)
    return op.Min(op.Div(op.constant(np.float32(limit)), norm), op.constant(np.float32(1)))


def regularization(l1: float, l2: float) -> Link:
    """Adds l1·sign(w) + l2·w, the gradient of l1·‖w‖₁ + ½·l2·‖w‖²: times the decay multiplier, plus the marks' own."""

    def link(u: Updating, gradient: ir.Value) -> ir.Value:
        op, mark = u.op, u.marks
        squared, absolute = l2 * mark.decay + mark.l2, l1 * mark.decay + mark.l1
        if squared:
            gradient = op.Add(gradient, op.Mul(u.parameter, u.scalar(squared)))
        if absolute:
            gradient = op.Add(gradient, op.Mul(op.Sign(u.parameter), u.scalar(absolute)))
        return gradient

    return link


def decoupled_decay(rate: float) -> Link:
    """Takes learning rate · rate of the parameter away, past the optimizer (Loshchilov and Hutter 2019)."""

    def link(u: Updating, gradient: ir.Value) -> ir.Value:
        u.shrink += rate * u.marks.decay
        return gradient

    return link


def trace(momentum: float, nesterov: bool = False, dampening: float = 0.0, rate_in_momentum: bool = False) -> Link:
    """v ← momentum·v + (1 − dampening)·g; returns v, or g + momentum·v with `nesterov` (Sutskever et al. 2013).

    PyTorch's form: the learning rate is applied behind it, and the first gradient is not dampened. With
    `rate_in_momentum`, Caffe's and Keras': v has the learning rates of its gradients.
    """

    def link(u: Updating, gradient: ir.Value) -> ir.Value:
        op, keep = u.op, u.scalar(momentum if u.all.momentum is None else u.all.momentum)
        if rate_in_momentum:
            gradient, u.rate_applied = op.Mul(gradient, u.scalar(u.rate())), True
        added = gradient
        if dampening:
            share = u.clock.once("dampening", lambda: _after_first(u.clock, 1 - dampening))
            added = op.Mul(gradient, u.scalar(share))
        velocity = u.keep("momentum", op.Add(op.Mul(u.state("momentum"), keep), added))
        return op.Add(gradient, op.Mul(velocity, keep)) if nesterov else velocity

    return link


def _after_first(clock: Clock, number: float) -> ir.Value:
    """1 in the first update, then `number`."""
    op, one = clock.op, clock.op.constant(np.float32(1))
    return op.Where(op.Equal(clock.step, one), one, op.constant(np.float32(number)))


def _moments(u: Updating, gradient: ir.Value, beta1: float, beta2: float) -> tuple[ir.Value, ir.Value]:
    """The moving sums of the gradient and of its square; `scale` makes the first, without its bias, an average."""
    op, cycled = u.op, u.all.momentum
    if cycled is None:
        first = u.decaying_sum("m", beta1, gradient)
        u.scale(1 - beta1)
    else:  # a factor that changes cannot be left out
        rest = u.all.once("1 - momentum", lambda: op.Sub(op.constant(np.float32(1)), cycled))
        kept = op.Mul(u.state("m"), u.scalar(cycled))
        first = u.keep("m", op.Add(kept, op.Mul(gradient, u.scalar(rest))))
    return first, u.decaying_sum("v", beta2, op.Mul(gradient, gradient))


def _root(u: Updating, second: ir.Value, beta2: float, epsilon: float, hat: bool = False) -> ir.Value:
    """√v̂ + ε over s, where s² = (1 − β₂) / (1 − β₂ᵗ) is what makes the moving sum `second` v̂.

    With `hat` the ε belongs to √v and not to √v̂ (Kingma and Ba 2015, end of section 2).
    """
    op, clock = u.op, u.clock
    if hat:
        return op.Add(op.Sqrt(second), u.scalar(epsilon / float(np.sqrt(1 - beta2))))
    small = clock.once(
        "epsilon", lambda: clock.all.as_float(op.Div(op.constant(np.array(epsilon)), _spread(clock, beta2)))
    )
    return op.Add(op.Sqrt(second), u.scalar(small))


def _spread(clock: Clock, beta2: float) -> ir.Value:
    """The s of `_root`, in double."""
    op = clock.op
    return clock.once("spread", lambda: op.Sqrt(op.Div(op.constant(np.array(1 - beta2)), clock.bias(beta2))))


def adam_scaling(beta1: float, beta2: float, epsilon: float, amsgrad: bool = False, epsilon_hat: bool = False) -> Link:
    """m̂ / (√v̂ + ε) with bias-corrected moments (Kingma and Ba 2015, algorithm 1).

    With `amsgrad` the largest v so far (Reddi et al. 2018, section 4; its bias is corrected, as in PyTorch).
    """

    def link(u: Updating, gradient: ir.Value) -> ir.Value:
        op, clock = u.op, u.clock
        first, second = _moments(u, gradient, beta1, beta2)
        if amsgrad:
            second = u.keep("v_max", op.Max(u.state("v_max"), second))
        decay = beta1 if u.all.momentum is None else u.all.momentum

        def correction() -> ir.Value:
            product = op.Mul(clock.bias(decay), _spread(clock, beta2))
            return u.all.as_float(op.Div(op.constant(np.array(1.0)), product))

        u.scale(clock.once("adam", correction))
        return op.Div(first, _root(u, second, beta2, epsilon, epsilon_hat))

    return link


def nadam_scaling(beta1: float, beta2: float, epsilon: float, momentum_decay: float) -> Link:
    """Adam with Nesterov's look ahead (Dozat 2016, algorithm 2), with its schedule μₜ = β₁·(1 − ½·0.96^(t·ψ))."""

    def factors(clock: Clock) -> tuple[ir.Value, ir.Value]:
        """Of the gradient, over the s of `_root`; of the moving sum, in proportion to that."""
        op, everyone = clock.op, clock.all
        one = op.constant(np.array(1.0))

        def mu(time: ir.Value) -> ir.Value:
            power = op.Pow(op.constant(np.array(0.96)), op.Mul(time, op.constant(np.array(momentum_decay))))
            return op.Mul(op.Sub(one, op.Mul(power, op.constant(np.array(0.5)))), op.constant(np.array(beta1)))

        name = "mu_product" if clock.name == "step" else f"{clock.name}/mu_product"
        now, following = mu(clock.time), mu(op.Add(clock.time, one))
        product = everyone.after[name] = op.Mul(everyone.state(name, np.ones((), np.float64)), now)
        of_gradient = op.Div(op.Sub(one, now), op.Sub(one, product))
        of_sum = op.Div(op.Mul(following, op.constant(np.array(1 - beta1))), op.Sub(one, op.Mul(product, following)))
        return (
            everyone.as_float(op.Div(of_gradient, _spread(clock, beta2))),
            everyone.as_float(op.Div(of_sum, of_gradient)),
        )

    def link(u: Updating, gradient: ir.Value) -> ir.Value:
        op, clock = u.op, u.clock
        first, second = u.decaying_sum("m", beta1, gradient), u.decaying_sum("v", beta2, op.Mul(gradient, gradient))
        made: list[ir.Value] = []

        def make() -> ir.Value:
            made.extend(factors(clock))
            return made[0]

        of_gradient = clock.once("nadam's gradient", make)
        of_sum = clock.once("nadam's sum", lambda: made[1])
        u.scale(of_gradient)
        return op.Div(op.Add(gradient, op.Mul(first, u.scalar(of_sum))), _root(u, second, beta2, epsilon))

    return link


def adamax_scaling(beta1: float, beta2: float, epsilon: float) -> Link:
    """m̂ / u with u ← max(β₂·u, |g| + ε) (Kingma and Ba 2015, section 7.1; the ε is PyTorch's)."""

    def link(u: Updating, gradient: ir.Value) -> ir.Value:
        op, clock = u.op, u.clock
        first = u.decaying_sum("m", beta1, gradient)
        size = op.Add(op.Abs(gradient), u.scalar(epsilon))
        top = u.keep("u", op.Max(op.Mul(u.state("u"), u.scalar(beta2)), size))
        share = op.constant(np.array(1 - beta1))
        u.scale(clock.once("adamax", lambda: u.all.as_float(op.Div(share, clock.bias(beta1)))))
        return op.Div(first, top)

    return link


def rms_scaling(rho: float, epsilon: float, centered: bool = False) -> Link:
    """g / (√v + ε), v the moving average of g² (Tieleman and Hinton 2012).

    With `centered`, v is the variance, that average less the square of g's (Graves 2013, equation 38).
    """

    def link(u: Updating, gradient: ir.Value) -> ir.Value:
        op = u.op
        second = u.decaying_sum("v", rho, op.Mul(gradient, gradient))
        if centered:
            mean = u.decaying_sum("m", rho, gradient)
            rest = op.Sub(second, op.Mul(op.Mul(mean, mean), u.scalar(1 - rho)))
            second = op.Max(rest, op.constant(np.float32(0)))  # rounding may bring it below
        spread = float(np.sqrt(1 - rho))
        u.scale(1 / spread)
        return op.Div(gradient, op.Add(op.Sqrt(second), u.scalar(epsilon / spread)))

    return link


def adagrad_scaling(epsilon: float, start: float) -> Link:
    """g / (√s + ε), s the sum of all g² and of `start` (Duchi et al. 2011)."""

    def link(u: Updating, gradient: ir.Value) -> ir.Value:
        op = u.op
        total = u.keep("sum", op.Add(u.state("sum", start), op.Mul(gradient, gradient)))
        return op.Div(gradient, op.Add(op.Sqrt(total), u.scalar(epsilon)))

    return link


def adadelta_scaling(rho: float, epsilon: float) -> Link:
    """d = g·√((D + ε) / (v + ε)), v and D the moving averages of g² and d² (Zeiler 2012, algorithm 1)."""

    def link(u: Updating, gradient: ir.Value) -> ir.Value:
        op = u.op
        small = u.scalar(epsilon / (1 - rho))  # the averages are kept without their factor
        second = u.decaying_sum("v", rho, op.Mul(gradient, gradient))
        before = u.state("delta")
        ratio = op.Sqrt(op.Div(op.Add(before, small), op.Add(second, small)))
        step = op.Mul(gradient, ratio)
        u.keep("delta", op.Add(op.Mul(before, u.scalar(rho)), op.Mul(step, step)))
        return step

    return link


def lion_sign(beta1: float, beta2: float) -> Link:
    """sign(β₁·m + (1 − β₁)·g), then m ← β₂·m + (1 − β₂)·g (Chen et al. 2023, algorithm 2)."""

    def link(u: Updating, gradient: ir.Value) -> ir.Value:
        op, before = u.op, u.state("m")  # m / (1 − β₂)
        share = beta1 * (1 - beta2) / (1 - beta1)
        sign = op.Sign(op.Add(op.Mul(before, u.scalar(share)), gradient))
        u.keep("m", op.Add(op.Mul(before, u.scalar(beta2)), gradient))
        return sign

    return link
