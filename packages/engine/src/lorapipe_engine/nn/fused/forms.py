"""Changes that are no LoRA but equal one: two factors made of an algorithm's own parameters before each step.

LoKr's w1 ⊗ (w2_a · w2_b) is (w1 ⊗ w2_a) · (1 ⊗ w2_b), LoHa's product of products has rank r², DyLoRA is a LoRA with
some ranks left out. Packed as such they are two short products more in the base's own; what makes the factors of the
parameters is small, and done for all layers of one shape together. Gradients reach the factors first, and go on to the
parameters from there.

Under magnitudes (DoRA) a form has a ratio besides, which multiplies the outputs or the inputs of base and change. Its
factors' gradients are those of up times the ratio, or of down times it: what the ratio gets through the change goes
through these to the magnitudes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lorapipe_engine.nn.base import NO_DROPOUT, Adapter, alike


class Form:
    """An adapter as a LoRA of rank ``adapter.short_rank()`` and scale 1, for a pack: see :class:`.packed.LowRank`.

    ``lora_down`` (R, in), ``lora_up`` (out, R) and their gradients are views of the buffers of a :class:`FormGroup`.
    ``axis``: see :meth:`.Adapter.short_axis`. Its pack sets ``ratio`` and ``ratio_grad``, (out,) or (in,), what the
    base's product is multiplied with and where its gradient goes; ``less`` (1, in) is the ratio minus 1, of inputs
    alone. With axis 1 ``lora_down`` is multiplied with the ratio already, but where the form is alone in its pack: it
    then reads an input that has the ratio in it, and its gradient is that on the plain input. Where up is the adapter's
    own parameter (:meth:`.Adapter.plain_factors`), it is here too, and so is its ``alpha``.
    """

    dropouts = NO_DROPOUT
    is_alone = False
    ratio: Tensor
    ratio_grad: Tensor
    less: Tensor

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.base = adapter.base
        self.rank = adapter.short_rank()
        self.axis = adapter.short_axis()
        # By outputs the gradient of up is that of up times the ratio.
        self.plain = adapter.plain_factors() if self.axis == 1 else None
        weight = adapter.weight.flatten(1)
        like = next(adapter.parameters())
        self.lora_down = nn.Parameter(like.new_zeros(self.rank, weight.shape[1]))
        if self.plain is None:
            self.alpha = float(self.rank)
            self.lora_up = nn.Parameter(like.new_zeros(weight.shape[0], self.rank))
        else:
            self.alpha = adapter.alpha
            self.lora_up = cast(nn.Parameter, getattr(adapter, self.plain[1]))

    @property
    def weight(self) -> Tensor:
        """The frozen weight."""
        return self.adapter.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias, if any."""
        return self.adapter.bias


class FormGroup:
    """The forms of N adapters that are :func:`alike`: ``down`` (N, R, in), ``up`` (N, out, R), float32."""

    def __init__(self, forms: Sequence[Form]) -> None:
        self.rows = [form.adapter for form in forms]
        first = forms[0]
        self.down = first.lora_down.detach().new_zeros(len(forms), *first.lora_down.shape)
        self.up = first.lora_up.detach().new_zeros(len(forms), *first.lora_up.shape)
        self._gradients = (torch.zeros_like(self.down), torch.zeros_like(self.up))
        for index, form in enumerate(forms):
            form.lora_down.data, form.lora_up.data = self.down[index], self.up[index]
            form.lora_down.grad, form.lora_up.grad = (part[index] for part in self._gradients)
        self.axis = first.axis
        self._is_alone = self.axis == 1 and first.is_alone
        self._ratios = [form.ratio for form in forms if self.axis is not None]
        self._ratio_grads = [form.ratio_grad for form in forms if self.axis is not None]
        if self.axis == 1:
            self._less = self.down.new_zeros(len(forms), 1, self.down.shape[2])
            for form, less in zip(forms, self._less, strict=True):
                form.less = less
        self._values: dict[str, Tensor] = {}
        self._made: tuple[Tensor, ...] | None = None

    def compute(self) -> None:
        """Make factors and ratio of the parameters as they are now; their gradients are zero again."""
        first = self.rows[0]
        names = [*first.roles, *first.frozen]
        values = {name: torch.stack([getattr(row, name).detach() for row in self.rows]) for name in names}
        self._values = {name: values[name].requires_grad_() for name in first.roles}
        with torch.enable_grad():
            down, up = factors = type(first).short_form(self.rows, values)
            if self.axis is not None:
                ratio = type(first).short_ratio(self.rows, values, down, up)
                own = ratio.detach() if self._is_alone else ratio
                factors = (down, up * ratio[:, :, None]) if self.axis == 0 else (down * own[:, None], up)
                self._take_ratio(ratio.detach())
        self._made = factors if self.axis is None else (*factors, ratio)
        # By outputs the pack's product is multiplied with the ratio as a whole, and by inputs what a lone form reads.
        self.down.copy_((down if self._is_alone else factors[0]).detach())
        self.up.copy_(up.detach())
        self._clear()

    def _take_ratio(self, ratio: Tensor) -> None:
        torch._foreach_copy_(self._ratios, list(ratio.unbind()))
        if self.axis == 1:
            torch.sub(ratio[:, None], 1, out=self._less)

    def pass_on(self) -> None:
        """Add the gradients that the factors have to those of the parameters. May be called after each of several
        backward passes."""
        if self._made is None:
            return
        values = list(self._values.values())
        reached: tuple[Tensor, ...] = self._gradients
        if self.axis is not None:
            reached = (*reached, torch.stack(self._ratio_grads))
        pairs = [pair for pair in zip(self._made, reached, strict=True) if pair[0].requires_grad]
        made, passed = zip(*pairs, strict=True)
        gradients = torch.autograd.grad(made, values, passed, retain_graph=True)
        for name, gradient in zip(self._values, gradients, strict=True):
            into = [cast(Tensor, getattr(row, name).grad) for row in self.rows]
            torch._foreach_add_(into, list(gradient.unbind()))
        self._clear()

    def _clear(self) -> None:
        torch._foreach_zero_([*self._gradients, *self._ratio_grads])


class PlainFormGroup:
    """The forms by inputs of N adapters that are :func:`alike` and whose factors are their own parameters: all that is
    made for them is the ratio, and where several share a pack down times it.

    The ratio r has no gradient through the factors (see :mod:`..factored`). That of down, from G on down ∘ r, is G ∘ r,
    and that of r besides the sum of G ∘ down over the ranks. A lone form's G, on the plain input, is the first alone.
    """

    def __init__(self, forms: Sequence[Form]) -> None:
        first = forms[0]
        assert first.plain is not None
        self.rows = [form.adapter for form in forms]
        self._names = first.plain
        self._others = [name for name in first.adapter.roles if name not in first.plain]
        self._is_alone = first.is_alone
        shape = (len(forms), *first.lora_down.shape)
        self._down_grad = first.lora_down.new_zeros(shape, requires_grad=False)
        self._down = self._down_grad.new_zeros(0 if self._is_alone else shape)
        self._less = self._down_grad.new_zeros(len(forms), 1, shape[2])
        self._ratios = [form.ratio for form in forms]
        self._ratio_grads = [form.ratio_grad for form in forms]
        for index, form in enumerate(forms):
            own = getattr(form.adapter, self._names[0]).data.flatten(1)
            form.lora_down.data = own if self._is_alone else self._down[index]
            form.lora_down.grad = self._down_grad[index]
            form.less = self._less[index]
        self._made: tuple[dict[str, Tensor], Tensor | None, Tensor] | None = None

    def compute(self) -> None:
        """Make the ratio of the parameters as they are now; gradients are zero again."""
        first = self.rows[0]
        values = {name: self._stacked(name) for name in self._names}
        with torch.no_grad():
            down, up = type(first).short_form(self.rows, values)
        learned = {name: self._stacked(name).requires_grad_() for name in self._others}
        with torch.enable_grad():
            ratio = type(first).short_ratio(self.rows, learned, down, up)
        now = ratio.detach()
        if not self._is_alone:
            torch.mul(down, now[:, None], out=self._down)
        torch._foreach_copy_(self._ratios, list(now.unbind()))
        torch.sub(now[:, None], 1, out=self._less)
        self._made = learned, None if self._is_alone else down, ratio
        self._clear()

    def pass_on(self) -> None:
        """See :meth:`FormGroup.pass_on`."""
        if self._made is None:
            return
        learned, down, ratio = self._made
        of_ratio = torch.stack(self._ratio_grads)
        if down is not None:
            of_ratio += (self._down_grad * down).sum(dim=1)
        self._down_grad.mul_(ratio.detach()[:, None])
        gradients = torch.autograd.grad([ratio], list(learned.values()), [of_ratio], retain_graph=True)
        reached = {self._names[0]: self._down_grad, **dict(zip(learned, gradients, strict=True))}
        for name, gradient in reached.items():
            into = [cast(Tensor, getattr(row, name).grad) for row in self.rows]
            parts = [part.view_as(own) for part, own in zip(gradient.unbind(), into, strict=True)]
            torch._foreach_add_(into, parts)
        self._clear()

    def _stacked(self, name: str) -> Tensor:
        return torch.stack([getattr(row, name).detach() for row in self.rows])

    def _clear(self) -> None:
        torch._foreach_zero_([self._down_grad, *self._ratio_grads])


def group_forms(forms: Sequence[Form]) -> list[FormGroup | PlainFormGroup]:
    """The forms by adapters that are alike, so that each kind is made in a few operations."""
    of = {id(form.adapter): form for form in forms}
    kinds = {id(form): (form.axis, form.axis == 1 and form.is_alone) for form in forms}
    groups = [
        group
        for kind in dict.fromkeys(kinds.values())
        for group in alike(form.adapter for form in forms if kinds[id(form)] == kind)
    ]
    made = [[of[id(adapter)] for adapter in group] for group in groups]
    return [FormGroup(rows) if rows[0].plain is None else PlainFormGroup(rows) for rows in made]
