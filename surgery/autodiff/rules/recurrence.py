"""One direction of a recurrent operator: what LSTM, GRU and RNN have in common when they are differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from surgery.autodiff.backward import Context
from surgery.autodiff.rules.gate import ACTIVATIONS, Gate, gates
from surgery.emit import Emitter
from surgery.errors import SurgeryError, nearest

__all__ = ["Direction", "Scanned"]

Scanned = tuple[list[ir.Value], list[ir.Value]]  # states, and what is collected from the steps
Body = Callable[[Emitter, list[ir.Value], list[ir.Value]], Scanned]  # of one step's states and slices

_USUAL = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}


class Direction:
    """One direction of a recurrent operator, of T steps, N sequences, I features, H hidden units and G gates.

    Attributes:
        x: The input, [T, N, I].
        w: The weights of the input, [G·H, I].
        r: The weights of the hidden state, [G·H, H].
        biases: Those of the input and of the hidden state, [G·H] each; None where the operator has none.
        y: The hidden state after each step, [T, N, H].
        before: The hidden state before each step, [T, N, H].
        mask: 1 for the steps of a sequence and 0 behind its end, [T, N, 1]; None where no sequence ends early.
        dy: The gradient of y; None where only the last state matters.
        functions: The functions of the gates and, of LSTM, the one in front of the hidden state.
    """

    def __init__(self, c: Context, index: int, backwards: bool, gates: int) -> None:
        self.c, self.op, self.index, self.backwards = c, c.op, index, backwards
        op = c.op
        self.dtype = c.x().dtype or ir.DataType.FLOAT
        self.hidden = _hidden(c)
        self.functions = _functions(c, index, self.dtype)
        self.x, self.w, self.r = c.x(), self.own(c.x(1)), self.own(c.x(2))
        self.biases: list[ir.Value | None] = [None, None]
        if c.has(3):
            self.biases = op.Split(self.own(c.x(3)), np.array([gates * self.hidden] * 2), axis=0, _outputs=2)
        self.mask = self._mask() if c.has(4) else None
        self.y = self.own(c.extra_output(0, self.dtype), axis=1)
        self.before = self._before()
        dy = c.dy_of(0)
        self.dy = None if dy is None else self.masked(self.own(dy, axis=1))

    def own(self, value: ir.Value, axis: int = 0) -> ir.Value:
        """This direction's part of a tensor."""
        own = self.op.Gather(value, np.array(self.index), axis=axis)
        own.dtype = self.dtype
        return own

    def state(self, value: ir.Value | None) -> ir.Value:
        """This direction's part of a state or of its gradient; zeros where there is none. [N, H]"""
        if value is not None:
            return self.own(value)
        shape = self.op.Concat(self.op.Shape(self.x, start=1, end=2), np.array([self.hidden]), axis=0)
        return self.op.ConstantOfShape(shape, value=ir.tensor(np.zeros(1, self.dtype.numpy())))

    def first(self, index: int) -> ir.Value:
        """The initial state, input `index`."""
        return self.state(self.c.x(index) if self.c.has(index) else None)

    def masked(self, value: ir.Value) -> ir.Value:
        """`value`, [T, N, …], with 0 behind the ends of sequences."""
        return value if self.mask is None else self.op.Mul(value, self.mask)

    def _mask(self) -> ir.Value:
        op, lengths = self.op, self.c.x(4)
        steps = op.Range(np.array(0), op.Squeeze(op.Shape(self.x, start=0, end=1), np.array([0])), np.array(1))
        inside = op.Less(op.Unsqueeze(steps, np.array([1])), op.Cast(lengths, to=int(ir.DataType.INT64)))
        return op.Unsqueeze(op.Cast(inside, to=int(self.dtype)), np.array([2]))

    def _before(self) -> ir.Value:
        op, end = self.op, np.array([2**31])
        start = op.Unsqueeze(self.first(5), np.array([0]))
        if not self.backwards:
            return op.Concat(start, op.Slice(self.y, np.array([0]), np.array([-1]), np.array([0])), axis=0)
        later = op.Concat(op.Slice(self.y, np.array([1]), end, np.array([0])), start, axis=0)
        if self.mask is None:
            return later
        # The last step of a sequence comes first: before it is the initial state.
        ends = op.Slice(self.mask, np.array([1]), end, np.array([0]))
        goes_on = op.Pad(ends, np.array([0, 0, 0, 1, 0, 0]))
        return op.Where(op.Cast(goes_on, to=int(ir.DataType.BOOL)), later, start)

    def product(self, value: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        """`value` · weightᵀ + bias, for all steps."""
        result = self.op.MatMul(value, self.op.Transpose(weight, perm=[1, 0]))
        return result if bias is None else self.op.Add(result, bias)

    def gates(self) -> ir.Value:
        """What goes into the gates where input and state just add up, [T, N, G·H]."""
        into = self.product(self.x, self.w, self.biases[0])
        return self.op.Add(into, self.product(self.before, self.r, self.biases[1]))

    def split(self, value: ir.Value, *counts: int, op: Emitter | None = None) -> list[ir.Value]:
        """Parts of `value` along its last axis, each of so many gates."""
        sizes = np.array([n * self.hidden for n in counts])
        parts: list[ir.Value] = (op or self.op).Split(value, sizes, axis=-1, _outputs=len(counts))
        for part in parts:
            part.dtype = self.dtype
        return parts

    def scan(self, states: list[ir.Value], slices: list[ir.Value], body: Body, *, undo: bool) -> Scanned:
        """Runs `body` over the steps, in the operator's order or, to undo it, in the opposite one.

        With masks, the mask comes as the last slice.

        Returns:
            The last states, and what was collected from all steps, each [T, …].
        """
        slices = slices if self.mask is None else [*slices, self.mask]
        prefix = f"{self.op.fresh('Scan')}/"
        inside = [ir.val(f"{prefix}{i}", v.dtype or self.dtype) for i, v in enumerate([*states, *slices])]
        graph = ir.Graph(inside, [], nodes=[], opset_imports=dict(self.op.graph.opset_imports), name=prefix[:-1])
        new, outs = body(Emitter(graph, prefix), inside[: len(states)], inside[len(states) :])
        graph.outputs.extend([*new, *outs])
        for output in graph.outputs:
            output.dtype = self.dtype
        direction = int(self.backwards != undo)
        results = self.op.Scan(
            *states,
            *slices,
            _outputs=len(new) + len(outs),
            body=graph,
            num_scan_inputs=len(slices),
            scan_input_directions=[direction] * len(slices),
            scan_output_directions=[direction] * len(outs),
        )
        results = results if isinstance(results, list) else [results]
        for result in results:
            result.dtype = self.dtype
        return results[: len(new)], results[len(new) :]

    def pass_on(
        self, op: Emitter, slices: list[ir.Value], pairs: Sequence[tuple[ir.Value, ir.Value]]
    ) -> list[ir.Value]:
        """Of each (new state, old state), the new one inside of sequences and the old one behind their ends."""
        if self.mask is None:
            return [new for new, _ in pairs]
        inside = op.Cast(slices[-1], to=int(ir.DataType.BOOL))
        return [op.Where(inside, new, old) for new, old in pairs]

    def hide(self, op: Emitter, slices: list[ir.Value], value: ir.Value) -> ir.Value:
        """`value`, with 0 behind the ends of sequences."""
        return value if self.mask is None else op.Mul(value, slices[-1])

    def weights(self, d_in: ir.Value, d_state: ir.Value) -> list[ir.Value | None]:
        """The gradients of X, W, R and B.

        Args:
            d_in: The gradient of what goes into the gates from the input, [T, N, G·H].
            d_state: That of what goes into them from the hidden state.
        """
        c, op = self.c, self.op
        dx = op.MatMul(d_in, self.w) if c.wants(0) else None
        dw = self.outer(d_in, self.x) if c.wants(1) else None
        dr = self.outer(d_state, self.before) if c.wants(2) else None
        db = None
        if c.wants(3):
            d_bias = op.ReduceSum(d_in, np.array([0, 1]), keepdims=0)
            d_bias_r = d_bias if d_state is d_in else op.ReduceSum(d_state, np.array([0, 1]), keepdims=0)
            db = op.Concat(d_bias, d_bias_r, axis=0)
        return [dx, dw, dr, db]

    def outer(self, gradient: ir.Value, value: ir.Value) -> ir.Value:
        """Σ gradientᵀ · value over all steps and sequences."""
        op = self.op
        rows = [op.Reshape(v, op.Concat(np.array([-1]), op.Shape(v, start=2), axis=0)) for v in (gradient, value)]
        return op.Gemm(*rows, transA=1)


def _hidden(c: Context) -> int:
    hidden = c.attr("hidden_size") or c.dims(c.x(2))[2]
    if hidden is None:
        raise SurgeryError(f"{c.node.op_type} {c.node.name!r}: its hidden_size is unknown; give it as an attribute")
    return int(hidden)


def _functions(c: Context, index: int, dtype: ir.DataType) -> list[Gate]:
    """The activation functions of a direction.

    Raises:
        SurgeryError: One is not ONNX's, or the layout is the one that no runtime computes.
    """
    where = f"{c.node.op_type} {c.node.name!r}"
    usual = _USUAL[c.node.op_type]
    names = [str(n).lower() for n in c.attr("activations") or []] or usual * (index + 1)
    unknown = next((n for n in names if n not in ACTIVATIONS), None)
    if unknown is not None or c.attr("layout"):
        what = f"activation {unknown}{nearest(unknown, ACTIVATIONS)}" if unknown is not None else "layout=1"
        raise SurgeryError(
            f"no gradient is known for {where} with {what}; freeze every layer up to it "
            f"(freeze: {{until: {c.node.name}}})"
        )
    alphas, betas = c.attr("activation_alpha") or [], c.attr("activation_beta") or []
    return gates(names, alphas, betas, c.attr("clip", 0.0), dtype)[index * len(usual) : (index + 1) * len(usual)]
