"""What a worker measures: models and ops of each peer behind one interface. Runs in peers' interpreters too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.cases import Workload
from benchmarks.memory import measure
from benchmarks.models import HIDDEN, LAYERS, SHARED, VOCABULARY
from benchmarks.ops import Op

FIRST_TOKEN = 5  # ids below are kept for the special tokens
LEARNING_RATE = 1e-5
# A step this short pages in the libraries and starts the threads, so that these do not count as the work's memory.
TOUCH_LENGTH = 64


class Subject:
    """A module with inputs, and one step of its workload.

    `step(length)` takes `length` tokens of the inputs, all by default; `evaluate` gives the outputs, and for training
    the loss and every gradient, with dropout off.

    Attributes:
        parts: Of how many like parts a step is made; a part's time is what is reported.
    """

    parts = 1

    def __init__(self, module: nn.Module, workload: Workload):
        self.module = module
        self.workload = workload

    def prepare(self) -> None:
        """What must come before a step and is not measured."""

    def step(self, length: int | None = None) -> None:
        raise NotImplementedError

    def evaluate(self) -> dict[str, Tensor]:
        raise NotImplementedError

    def memory(self) -> tuple[int, str]:
        """Bytes of one step above the loaded module, and how they were measured.

        Optimiser state and caches are dropped first, so they count as the step's.
        """
        self.step(min(TOUCH_LENGTH, self.workload.length))
        self.forget()
        return measure(self.step)

    def calls(self) -> int:
        """Calls of aten functions in a step's part, those that others make included."""
        self.prepare()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            self.step()
        return round(sum(event.name.startswith("aten::") for event in profile.events()) / self.parts)

    def forget(self) -> None:
        """Drop what earlier steps left in memory: gradients, optimiser state, kernels cached by the module."""
        self.module.zero_grad(set_to_none=True)
        for module in self.module.modules():
            for name in ("_kernel", "_coeffs"):  # of 4.40.2's EMA
                if hasattr(module, name):
                    setattr(module, name, None)

    def save_weights(self, path: str) -> None:
        """Write the module's state as safetensors; tied weights are written twice."""
        from safetensors.torch import save_file

        save_file({name: tensor.clone().contiguous() for name, tensor in self.module.state_dict().items()}, path)

    def load_weights(self, path: str) -> None:
        """Read what `save_weights` of another peer wrote.

        Raises:
            ValueError: if the names differ by more than 4.40.2's `_float_tensor` buffers, which hold nothing.
        """
        from safetensors.torch import load_file

        weights = {name: tensor for name, tensor in load_file(path).items() if not name.endswith("_float_tensor")}
        ours = {name for name in self.module.state_dict() if not name.endswith("_float_tensor")}
        if difference := sorted(ours ^ weights.keys()):
            raise ValueError(f"The weights' names differ from the module's: {', '.join(difference[:5])}.")
        self.module.load_state_dict(weights, strict=False)

    def _gradients(self) -> dict[str, Tensor]:
        gradients = {
            f"gradient.{name}": parameter.grad.clone()
            for name, parameter in self.module.named_parameters()
            if parameter.grad is not None
        }
        self.forget()
        return gradients


class ModelSubject(Subject):
    """A training step or an inference of a model."""

    def __init__(self, module: nn.Module, workload: Workload, generator: torch.Generator):
        super().__init__(module.train(workload.task == "train"), workload)
        shape = (1, workload.length)
        self.input_ids = random_tokens(shape, generator)
        labels = random_tokens(shape, generator)
        labelled = torch.rand(shape, generator=generator) < workload.labelled
        labelled[:, 0] = True  # the loss of no label at all is undefined
        self.labels = labels.masked_fill(~labelled, -100)
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE)

    def step(self, length: int | None = None) -> None:
        if self.workload.task == "infer":
            with torch.inference_mode():
                self.module(input_ids=self.input_ids[:, :length])
            return
        self.module(input_ids=self.input_ids[:, :length], labels=self.labels[:, :length]).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def forget(self) -> None:
        super().forget()
        self.optimizer.state.clear()

    def evaluate(self) -> dict[str, Tensor]:
        if self.workload.task == "infer":
            with torch.no_grad():
                return {"output": self.module(input_ids=self.input_ids)[0].clone()}
        self.module.train(self.workload.dropout == 0)
        result = self.module(input_ids=self.input_ids, labels=self.labels)
        result.loss.backward()
        self.module.train()
        return {"loss": result.loss.detach(), "output": result.logits.detach(), **self._gradients()}


class MatmulSubject(Subject):
    """The matrix products of Mega's training step alone, forward and backward, at their shapes.

    Those are every linear layer's three and attention's six; the EMA's are left out, and none is made twice, as a step
    may do to save memory. They write into memory that was there before.
    """

    def __init__(self, module: nn.Module, workload: Workload, generator: torch.Generator):
        super().__init__(module, workload)
        self.products: list[tuple[Tensor, Tensor, Tensor]] = []

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        group = workload.chunk or workload.length
        groups = workload.length // group
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                weight = layer.weight.detach()
                x, gradient = randn(workload.length, layer.in_features), randn(workload.length, layer.out_features)
                self._add((x, weight.T), (gradient, weight), (gradient.T, x))
        for _ in range(LAYERS):
            q, k = randn(groups, group, SHARED), randn(groups, group, SHARED)
            v, gradient = randn(groups, group, HIDDEN), randn(groups, group, HIDDEN)
            weights = randn(groups, group, group)
            self._add((q, k.mT), (weights, v), (gradient, v.mT), (weights.mT, gradient), (weights, k), (weights.mT, q))

    def _add(self, *products: tuple[Tensor, Tensor]) -> None:
        self.products += [(a, b, a @ b) for a, b in products]

    def step(self, length: int | None = None) -> None:
        for a, b, out in self.products:
            torch.matmul(a, b, out=out)

    def memory(self) -> tuple[int, str]:
        return 0, "not measured"


class OpSubject(Subject):
    """Forward and backward of a function of batch-first `(1, length, ...)` inputs, with gradients for all of them."""

    def __init__(self, op: Op, workload: Workload):
        super().__init__(op.module, workload)
        self.call = op.call
        self.inputs = [tensor.requires_grad_() for tensor in op.inputs]
        self.gradient = op.gradient

    def step(self, length: int | None = None) -> None:
        inputs = self.inputs
        if length is not None:
            inputs = [tensor.detach()[:, :length].contiguous().requires_grad_() for tensor in inputs]
        self.call(*inputs).backward(self.gradient[:, :length])
        self.forget()

    def forget(self) -> None:
        super().forget()
        for tensor in self.inputs:
            tensor.grad = None

    def evaluate(self) -> dict[str, Tensor]:
        output = self.call(*self.inputs)
        output.backward(self.gradient)
        gradients = {f"gradient.input{i}": x.grad for i, x in enumerate(self.inputs) if x.grad is not None}
        return {"output": output.detach(), **gradients, **self._gradients()}


def random_tokens(shape: tuple[int, int], generator: torch.Generator, vocabulary: int = VOCABULARY) -> Tensor:
    """Ids of words."""
    return torch.randint(FIRST_TOKEN, vocabulary, shape, generator=generator)
