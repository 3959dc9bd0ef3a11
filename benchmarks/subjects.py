"""What a worker measures: models and ops of each peer behind one interface. Runs in peers' interpreters too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks import floor
from benchmarks.cases import Workload
from benchmarks.memory import measure
from benchmarks.models import VOCABULARY
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
        is_prepared: Whether `prepare` does something, so that no step may follow another without it.
    """

    parts = 1
    is_prepared = False

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
        if self.workload.device == "cpu":
            self.step(min(TOUCH_LENGTH, self.workload.length))
        self.forget()
        return measure(self.step, self.workload.device)

    def work(self) -> floor.Work | None:
        """The least work of a part; None if that is not known."""
        return None

    def placed(self, x: Tensor) -> Tensor:
        """A tensor on the workload's device, numbers in its dtype."""
        return x.to(self.workload.device, getattr(torch, self.workload.dtype) if x.is_floating_point() else None)

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
        shape = (workload.batch, workload.length)
        self.input_ids = self.placed(random_tokens(shape, generator))
        labels = random_tokens(shape, generator)
        labelled = torch.rand(shape, generator=generator) < workload.labelled
        labelled[:, 0] = True  # the loss of no label at all is undefined
        self.labels = self.placed(labels.masked_fill(~labelled, -100))
        fused = workload.device != "cpu" or None  # which PyTorch would not choose
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, fused=fused)

    def step(self, length: int | None = None) -> None:
        input_ids, labels = (x[:, :length].contiguous() for x in (self.input_ids, self.labels))
        if self.workload.task == "infer":
            with torch.inference_mode():
                self.module(input_ids=input_ids)
            return
        self.module(input_ids=input_ids, labels=labels).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def forget(self) -> None:
        super().forget()
        self.optimizer.state.clear()

    def work(self) -> floor.Work:
        train, w = self.workload.task == "train", self.workload
        return floor.step_of_model(self.module, (w.batch, w.length), train, w.width, w.layers)

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
        for _ in range(workload.layers):
            q, k = randn(groups, group, workload.shared), randn(groups, group, workload.shared)
            v, gradient = randn(groups, group, workload.hidden), randn(groups, group, workload.hidden)
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
    """Forward and backward of a function of batch-first `(rows, length, ...)` inputs, with gradients for all of them.

    Or forward alone, without gradients.
    """

    def __init__(self, op: Op, workload: Workload):
        super().__init__(op.module.to(workload.device), workload)
        self.call = op.call
        self.inputs = [self.placed(tensor).requires_grad_() for tensor in op.inputs]
        self.gradient = self.placed(op.gradient)

    def step(self, length: int | None = None) -> None:
        inputs = self.inputs
        if length is not None:
            inputs = [tensor.detach()[:, :length].contiguous().requires_grad_() for tensor in inputs]
        if self.workload.task.endswith("-forward"):
            with torch.no_grad():
                self.call(*inputs)
            return
        self.call(*inputs).backward(self.gradient[:, :length])
        self.forget()

    def forget(self) -> None:
        super().forget()
        for tensor in self.inputs:
            tensor.grad = None

    def work(self) -> floor.Work | None:
        w, size = self.workload, self.gradient.element_size()
        return floor.op(w.task, w.batch, w.length, w.width, w.shared, w.hidden, size)

    def evaluate(self) -> dict[str, Tensor]:
        output = self.call(*self.inputs)
        output.backward(self.gradient)
        gradients = {f"gradient.input{i}": x.grad for i, x in enumerate(self.inputs) if x.grad is not None}
        return {"output": output.detach(), **gradients, **self._gradients()}


def random_tokens(shape: tuple[int, int], generator: torch.Generator, vocabulary: int = VOCABULARY) -> Tensor:
    """Ids of words."""
    return torch.randint(FIRST_TOKEN, vocabulary, shape, generator=generator)
