"""What a worker measures: models and ops of each peer behind one interface. Runs in peers' interpreters too."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.cases import MODERNBERT, OLD, OURS, ROBERTA, Workload

VOCABULARY = 8192
WIDTH = 256
LAYERS = 4
HIDDEN = 512
EMA_CHANNELS = 512
FIRST_TOKEN = 5  # ids below are kept for the special tokens
LEARNING_RATE = 1e-5


class Subject:
    """A module with inputs, and one step of its workload.

    `step(length)` takes the leading `length` tokens of the inputs, all by default; `evaluate` gives the outputs, and
    for training the loss and every gradient, with dropout off.
    """

    def __init__(self, module: nn.Module, workload: Workload):
        self.module = module
        self.workload = workload

    def step(self, length: int | None = None) -> None:
        raise NotImplementedError

    def evaluate(self) -> dict[str, Tensor]:
        raise NotImplementedError

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
        self.input_ids = torch.randint(FIRST_TOKEN, VOCABULARY, shape, generator=generator)
        labels = torch.randint(FIRST_TOKEN, VOCABULARY, shape, generator=generator)
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


class OpSubject(Subject):
    """Forward and backward of a function of batch-first `(1, length, ...)` inputs, with gradients for all of them."""

    def __init__(
        self,
        module: nn.Module,
        workload: Workload,
        call: Callable[..., Tensor],
        inputs: list[Tensor],
        gradient: Tensor,
    ):
        super().__init__(module, workload)
        self.call = call
        self.inputs = [tensor.requires_grad_() for tensor in inputs]
        self.gradient = gradient

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


def build(peer: str, workload: Workload, seed: int) -> Subject:
    """The subject of a workload in a peer's hands; the same seed gives every peer the same inputs."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    if workload.task in ("train", "infer"):
        return ModelSubject(_MODELS[peer](workload), workload, generator)
    return _OPS[workload.task](peer, workload, generator)


def _classes(peer: str) -> Any:
    """The module that holds Mega's classes in this peer's interpreter."""
    return importlib.import_module("transformers" if peer == OLD else "mega_transformers")


def _mega(peer: str) -> Callable[[Workload], nn.Module]:
    def make(workload: Workload) -> nn.Module:
        classes = _classes(peer)
        additions: dict[str, Any] = {"sparse_prediction": workload.sparse} if peer == OURS else {}
        config = classes.MegaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            intermediate_size=HIDDEN,
            nffn_hidden_size=HIDDEN,
            ema_projection_size=16,
            shared_representation_size=64,
            use_chunking=workload.chunk is not None,
            chunk_size=workload.chunk or -1,
            attention_activation=workload.attention,
            dropout_prob=workload.dropout,
            hidden_dropout_prob=workload.dropout,
            attention_probs_dropout_prob=workload.dropout,
            nffn_activation_dropout_prob=workload.dropout,
            max_positions=workload.length,
            **additions,
        )
        model = classes.MegaModel(config, add_pooling_layer=False) if workload.head == "encoder" else None
        return _spread(model or classes.MegaForMaskedLM(config))

    return make


def _spread(module: nn.Module) -> nn.Module:
    """Draw the attention's small parameters wide enough that a mistake in scores or bias shows in the outputs."""
    spread = {"qk_weight": 1.0, "qk_bias": 0.1, "alpha": 0.2, "b_param": 0.2}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if std := spread.get(name.rpartition(".")[2]):
                parameter.normal_(std=std)
    return module


def _modernbert(workload: Workload) -> nn.Module:
    """Its default pattern (every third layer global, else windows of 128), and an MLP of a width for like size."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    config = ModernBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=768,
        max_position_embeddings=workload.length,
        attention_dropout=workload.dropout,
        embedding_dropout=workload.dropout,
        mlp_dropout=workload.dropout,
        sparse_prediction=workload.sparse,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        cls_token_id=0,
        sep_token_id=2,
    )
    return ModernBertForMaskedLM._from_config(config, attn_implementation="sdpa")


def _roberta(workload: Workload) -> nn.Module:
    """Like size but for the table of positions, which a length of 8192 needs and which costs no arithmetic."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=1152,
        max_position_embeddings=workload.length + 2,
        hidden_dropout_prob=workload.dropout,
        attention_probs_dropout_prob=workload.dropout,
        type_vocab_size=1,
    )
    return RobertaForMaskedLM._from_config(config, attn_implementation="sdpa")


_MODELS: dict[str, Callable[[Workload], nn.Module]] = {
    OURS: _mega(OURS),
    OLD: _mega(OLD),
    MODERNBERT: _modernbert,
    ROBERTA: _roberta,
}


def _ema_layer(peer: str, workload: Workload, generator: torch.Generator) -> Subject:
    if peer == OLD:
        from transformers.models.mega.modeling_mega import MegaMultiDimensionDampedEma
    else:
        from mega_transformers.layers import MegaMultiDimensionDampedEma

    config = _classes(peer).MegaConfig(hidden_size=EMA_CHANNELS, ema_projection_size=16, bidirectional=True)
    ema = MegaMultiDimensionDampedEma(config).train()
    _initialise_ema(ema, generator)
    shape = (1, workload.length, EMA_CHANNELS)
    x, gradient = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)

    def call(x: Tensor) -> Tensor:
        if peer == OLD:  # length first; with one row the transposition is a view, and costs nothing
            return ema(x.transpose(0, 1))[0].transpose(0, 1)
        return ema(x)

    return OpSubject(ema, workload, call, [x], gradient)


def _initialise_ema(ema: nn.Module, generator: torch.Generator) -> None:
    """4.40.2's distribution, which there is drawn by the model and not by the layer."""
    stds = {"damping_factor": 0.2, "decay_factor": 0.2, "ema_expansion_matrix": 0.02}
    with torch.no_grad():
        for name, parameter in sorted(ema.named_parameters()):
            parameter.normal_(std=stds.get(name, 1.0), generator=generator)
        expansion = ema.get_parameter("ema_expansion_matrix")
        expansion[:, 0::2] += 1
        expansion[:, 1::2] -= 1


class _Parameters(nn.Module):
    """Named parameters without a forward."""

    def __init__(self, **shapes: tuple[int, ...]):
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))


def _ema_op(peer: str, workload: Workload, generator: torch.Generator) -> Subject:
    from mega_transformers.ops.ema import ema

    states, channels = (2 * WIDTH, 16, 1), (1, workload.length, WIDTH)
    module = _Parameters(
        damping_factor=states, decay_factor=states, ema_expansion_matrix=states, kernel_projection_matrix=states[:2]
    )
    _initialise_ema(module, generator)
    parameters = list(module.parameters())

    def call(x: Tensor) -> Tensor:
        return cast(Tensor, ema(x, *parameters, bidirectional=True, backend=workload.backend))

    x, gradient = torch.randn(channels, generator=generator), torch.randn(channels, generator=generator)
    return OpSubject(module, workload, call, [x], gradient)


def _attention_op(peer: str, workload: Workload, generator: torch.Generator) -> Subject:
    from mega_transformers.ops.attention import attention
    from mega_transformers.ops.relative_bias import RotaryBias
    from mega_transformers.ops.visibility import Visibility

    module = _Parameters(alpha=(64,), beta=(64,))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2, generator=generator)
    bias = RotaryBias(*module.parameters())

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        visibility = Visibility.build(None, q.shape[1], chunk_size=workload.chunk)
        return attention(q, k, v, bias, visibility, activation=workload.attention, backend=workload.backend)[0]

    q, k, v, gradient = (torch.randn(1, workload.length, n, generator=generator) for n in (64, 64, HIDDEN, HIDDEN))
    return OpSubject(module, workload, call, [q, k, v], gradient)


_OPS: dict[str, Callable[[str, Workload, torch.Generator], Subject]] = {
    "ema-layer": _ema_layer,
    "ema-op": _ema_op,
    "attention-op": _attention_op,
}
