"""Attributor: scores every neuron for any objective, one batch after another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from types import TracebackType

import torch
from torch import nn

from culnig_fast import backend as backends
from culnig_fast.architecture import Architecture, SiteLocation, architecture_of
from culnig_fast.batch_scorer import BatchScorer
from culnig_fast.beginning import begin_gradients
from culnig_fast.errors import CulnigError
from culnig_fast.fused.choice import PathChoice
from culnig_fast.fused.fusion import Fusion, fused_layers
from culnig_fast.last_position import LastPosition, evaluation_mode, frozen_parameters
from culnig_fast.mixtures.experts import Routing
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.neurons import NeuronSite, named_modules
from culnig_fast.overwriting import overwritten
from culnig_fast.positions import check_reduction, counted
from culnig_fast.quantised import check_gradients
from culnig_fast.recompute import recomputed_layers
from culnig_fast.sample_weights import SampleWeights, refuse_nan
from culnig_fast.site_totals import SiteTotals
from culnig_fast.tap import attach_taps


class Attributor:
    """Activation × gradient of every neuron, scored inside the backward pass and summed per group.

        with Attributor(model, sites=("mlp.gate_proj",), n_groups=2) as attributor:
            logits = attributor.forward(input_ids, lengths)
            attributor.backward(objective, weight=w, group=g)
        attributor.totals

    Inside the block the model is frozen, in evaluation mode and hooked, and gradients are on, also where the caller has
    turned them off; on exit, also after an error, everything is as it was.

    Args:
        model: a Hugging Face decoder, or the `Architecture` that `discover` found in one. Its weights may be divided
            among processes by transformers' tensor-parallel plan: each then scores its columns, all run the same
            batches, and all ask for `totals` together.
        sites: module names to score, or one; None means the paper's (q, k, v, gate, up).
        n_groups: rows of `totals`.
        reduction: over token positions, `max` (the paper's), `sum`, `mean`, `absmax` (the largest absolute value, as
            such: never below 0) or `last` (the last real position). Layers run fused with the first three.
        padding: `exclude` scores each sample by its own tokens; `zero` counts pads as scores of 0, as the published
            program does, which makes a score depend on the batch; with `max` and `sum` alone.
        backend: see `backend.resolve`.
        path: `auto` runs each layer fused where its structure allows and on taps elsewhere, `taps` runs none fused,
            `fused` refuses a model of which no layer can be. `fusion` says what each layer does.
        watch: neurons of which each sample's own score is kept, in `watched`.
        recompute: keep each layer's input alone and run the layer again in backward: less memory, the same totals,
            for one more forward pass a layer. A neuron is still scored once.

    Raises:
        CulnigError: the model's structure cannot be resolved, an option is unknown, or a watched neuron is not scored;
            on entering the block, a quantised projection passes no gradient back.
    """

    def __init__(
        self,
        model: nn.Module | Architecture,
        *,
        sites: Iterable[str] | None = None,
        n_groups: int = 1,
        reduction: str = "max",
        padding: str = "exclude",
        backend: str = "auto",
        path: str = "auto",
        watch: NeuronSet | None = None,
        recompute: bool = False,
    ) -> None:
        check_reduction(reduction, padding)
        if n_groups < 1:
            raise CulnigError(f"n_groups is {n_groups}; an attribution needs at least one group")
        self.architecture = architecture_of(model, divided=True)
        sites = named_modules(sites)
        self.locations = self.architecture.select(sites)
        self.layout = self.architecture.layout(sites)
        if watch and self.architecture.division is not None:
            raise CulnigError("single neurons cannot be watched where weights are divided among processes")
        self.n_groups = n_groups
        self.reduction, self.padding = reduction, padding
        self._choice = PathChoice(path, reduction, padding, self.architecture.division is not None)
        self.path, self.recompute = path, recompute
        self.fusion = Fusion()
        self._totals = SiteTotals(self.locations, self.layout, n_groups, self.architecture.division)
        ops = backends.resolve(backend)
        self._scorer = BatchScorer(self._totals, reduction, padding, ops, watch or NeuronSet.empty())
        self._stack = contextlib.ExitStack()
        self._scorers = contextlib.ExitStack()
        self._head: LastPosition | None = None

    def __enter__(self) -> Attributor:
        if self._head is not None:
            raise CulnigError("this attributor is in use already; leave its block first or make another")
        with contextlib.ExitStack() as stack:
            # The caller may sit in torch.no_grad() or inference_mode(), where no objective could be differentiated.
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(evaluation_mode(self.architecture.model))
            stack.enter_context(frozen_parameters(self.architecture.model))
            head = LastPosition(self.architecture.model, self.architecture.head)
            stack.callback(head.remove)
            leaf = self.architecture.embedding.register_forward_hook(begin_gradients)
            stack.callback(leaf.remove)
            found = self.architecture
            check_gradients(found.model, found.layers, found.head, lambda: self._few_logits(head))
            self._choice.masked = False
            self._scorers = stack.enter_context(contextlib.ExitStack())
            self._attach(head)
            self._head = head
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._head = None
        self._scorer.end()
        self._stack.close()

    def forward(
        self, input_ids: torch.Tensor, lengths: torch.Tensor, *, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run a right-padded batch.

        Args:
            input_ids: int64 [batch, T].
            lengths: int64 [batch] real tokens of each row, in 1…T.
            positions: bool [batch, T]; when given, the scores are reduced over these real positions alone. From the
                first such batch on, the block's layers run on taps, and `fusion` says so.

        Returns:
            float32 [batch, vocabulary] logits at each sample's last real position; differentiate through them.

        Raises:
            CulnigError: called outside the `with` block, a length is outside 1…T, positions mark no real token of a
                sample, or they are given with path='fused' or padding='zero'.
        """
        if self._head is None:
            raise CulnigError("use the attributor inside its `with` block")
        if input_ids.dim() != 2 or lengths.shape != input_ids.shape[:1]:
            raise CulnigError(
                f"input_ids must be [batch, T] and lengths [batch], not {list(input_ids.shape)}, {list(lengths.shape)}"
            )
        if lengths.device.type == "cpu" and not ((lengths >= 1) & (lengths <= input_ids.shape[1])).all():
            raise CulnigError(f"lengths must lie in 1…{input_ids.shape[1]}; an empty sample cannot be scored")
        if positions is not None:
            self._mask()
            if positions.shape != input_ids.shape:
                raise CulnigError(f"positions must be {list(input_ids.shape)}, not {list(positions.shape)}")
        lengths = lengths.to(input_ids.device)
        keep = None if positions is None else counted(positions, lengths)
        self._scorer.begin(lengths, input_ids.shape[1], keep)
        with torch.enable_grad():
            logits = self._head.logits(input_ids, lengths)
        logits.register_hook(self._scorer.only_now())
        return logits

    def backward(
        self,
        objective: torch.Tensor,
        *,
        weight: torch.Tensor | None = None,
        group: torch.Tensor | None = None,
        clamp_below_zero: bool = False,
        added: set[NeuronSite] | None = None,
        rows: torch.Tensor | None = None,
    ) -> None:
        """Back-propagate each sample's objective and add weight · score to its group's totals.

        Samples do not interact, so one backward of the sum gives every sample's own gradient. `watched` then holds
        the watched neurons' scores, [batch, neurons] of the objective's dtype, without the weight.

        Args:
            objective: [batch] a scalar a sample, a function of the last `forward`'s logits.
            weight: [batch] multiplies a sample's scores; 1 when None.
            group: int64 [batch] row of `totals`, 0 when None; or float [batch, n_groups], how often each sample
                counts in each row (overlapping groups, bootstrap resamples).
            clamp_below_zero: replace negative weighted scores by 0 (control sets).
            added: sites that have this batch's scores already, from an attempt that broke off; they are left out,
                and each other one is put in as its scores are added.
            rows: int64 [batch] rows of `watched` to write to, when the caller has put a table of its own there; else a
                new one is made.

        Raises:
            CulnigError: no forward came before, the objective is of an earlier one, shapes or group numbers do not fit,
                or, where it can be seen without waiting for a device, a weight is NaN though its objective is a number.
        """
        if not self._scorer.under_way:
            raise CulnigError("backward needs a forward before it, inside the `with` block")
        refuse_nan(objective, weight)
        self._go_back(objective, weight, group, clamp_below_zero, added, rows)

    def _go_back(
        self,
        objective: torch.Tensor,
        weight: torch.Tensor | None,
        group: torch.Tensor | None,
        clamp_below_zero: bool,
        added: set[NeuronSite] | None = None,
        rows: torch.Tensor | None = None,
    ) -> None:
        weights = SampleWeights.checked(
            objective,
            self._scorer.lengths.shape,
            self.n_groups,
            weight=weight,
            group=group,
            clamp_below_zero=clamp_below_zero,
        )
        with self._scorer.going_back(objective, weights, added, rows):
            torch.autograd.backward(objective.sum())  # not the method: other libraries replace that

    @property
    def watched(self) -> torch.Tensor | None:
        """[batch, neurons] watched neurons' scores of the last batch, without the weight; or a caller's own table."""
        return self._scorer.watched

    @watched.setter
    def watched(self, table: torch.Tensor | None) -> None:
        self._scorer.watched = table

    @property
    def totals(self) -> torch.Tensor:
        """float64 [n_groups, neurons] sums so far, on the device of the first scored layer."""
        return self._totals.whole()

    def totals_on(self, device: torch.device | str) -> torch.Tensor:
        """The same on another device, collected there: a GPU that is nearly full need not hold them twice."""
        return self._totals.whole(device)

    def reserve_totals(self) -> None:
        """Take the memory of the totals now and not with the first batch, for those who measure what is left."""
        self._totals.reserve()

    def is_finite(self) -> bool:
        """Whether no total is NaN or infinite; waits for the device, once for each."""
        return self._totals.is_finite()

    def restore(self, totals: torch.Tensor) -> None:
        """Start from earlier totals, float64 [n_groups, neurons]; CulnigError when the shape does not fit."""
        self._totals.restore(totals)

    def _few_logits(self, head: LastPosition, back: bool = False) -> torch.Tensor:
        """Logits of two short samples; with `back`, gradients pass through the layers too, and nothing is added."""
        device = self.architecture.embedding.weight.device
        vocabulary = int(self.architecture.embedding.weight.shape[0])
        input_ids = (torch.arange(3, 9, device=device) % vocabulary).view(2, 3)
        lengths = torch.tensor([3, 2], device=device)
        self._scorer.begin(lengths, input_ids.shape[1])
        try:
            logits = head.logits(input_ids, lengths)
            if back:
                watched = self._scorer.watched
                try:
                    self.backward(logits.logsumexp(-1), added={location.site for location in self.locations})
                except (AssertionError, NotImplementedError) as error:  # what the model's own code refuses
                    reason = " ".join(str(error).split())
                    raise CulnigError(
                        f"{type(self.architecture.model).__name__} has no backward pass in evaluation mode "
                        f"({reason:.200}), so its neurons cannot be scored"
                    ) from error
                self._scorer.watched = watched
            return logits
        finally:
            self._scorer.end()

    def _attach(self, head: LastPosition) -> None:
        """Put fused layers, taps and recomputation into the model; closing `_scorers` takes them out."""
        stack, reason = self._scorers, self._choice.why_taps()
        if reason is None:
            fusing = fused_layers(self.architecture, self._scorer.fused(self.locations), lambda: self._few_logits(head))
            self.fusion = stack.enter_context(fusing)
            self._choice.check(self.architecture.model, bool(self.fusion.layers), self.fusion.reasons)
            if self.architecture.embedding.weight.device.type == "cuda":
                torch.cuda.empty_cache()  # what joined weights have left lies in pieces too small for a batch
        else:
            self.fusion = Fusion(reasons=dict.fromkeys(range(len(self.architecture.layers)), reason))
        on_taps = [location for location in self.locations if location.site.layer_idx not in self.fusion.layers]
        copied = overwritten(on_taps, lambda: self._few_logits(head, back=True)) if on_taps else []
        for handle in attach_taps(on_taps, self._on_tap, copied=copied):
            stack.callback(handle.remove)
        if self.recompute:
            stack.enter_context(recomputed_layers(self.architecture.layers))

    def _on_tap(
        self, location: SiteLocation, act: torch.Tensor, grad: torch.Tensor, routing: Routing | None = None
    ) -> None:
        """What becomes of the activation and gradient that pass a tap; a subclass may look at them instead."""
        self._scorer.score(location, act, grad, routing)

    def _mask(self) -> None:
        """Make ready for batches with a position mask, which fused layers do not know."""
        self._choice.mask()
        if self.fusion.layers:
            self._leave_fused()

    def _leave_fused(self) -> None:
        """Take the fused layers out of the model, in the middle of a block."""
        assert self._head is not None
        self._scorers.close()
        self._attach(self._head)
