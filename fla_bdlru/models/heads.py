"""Models that classify: transformers' heads on BD-LRU and H-LRU, and a head for masked tokens."""

from __future__ import annotations

from functools import wraps

import torch
from torch import nn
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoModelForTokenClassification
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification
from transformers.modeling_outputs import MaskedLMOutput, SequenceClassifierOutputWithPast

from fla_bdlru.models.modeling import RecurrentConfig, RecurrentPreTrainedModel, base_model, families


class RecurrentForSequenceClassification(GenericForSequenceClassification, RecurrentPreTrainedModel):
    r"""A label (or reward) for each row, from its last token that is not `config.pad_token_id`, at either end.

    transformers' `GenericForSequenceClassification`: `num_labels`, `problem_type` and `labels` are as there. Packed documents
    are refused, as a row has one label.

    Example:
        >>> import torch
        >>> from fla_bdlru import BDLRUConfig, BDLRUForSequenceClassification
        >>> config = BDLRUConfig(hidden_size=32, num_hidden_layers=1, vocab_size=50, pad_token_id=0, num_labels=3)
        >>> model, rows = BDLRUForSequenceClassification(config).eval(), torch.tensor([[5, 6, 7], [8, 0, 0]])
        >>> logits = model(rows, attention_mask=(rows != 0).long()).logits
        >>> assert logits.shape == (2, 3)
    """

    accepts_loss_kwargs = False  # the loss is a mean of its own batch: Trainer divides it by the steps that it accumulates

    def __init__(self, config: RecurrentConfig) -> None:
        super(GenericForSequenceClassification, self).__init__(config)  # whose own asks AutoModel for the base
        self.num_labels = config.num_labels
        self.loss_type = "ForSequenceClassification"  # which transformers would look for in the class's name
        self.model = base_model(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @wraps(GenericForSequenceClassification.forward)  # whose signature tells Trainer the names of labels
    def forward(self, *args, **kwargs) -> SequenceClassifierOutputWithPast:
        if kwargs.get("cu_seqlens") is not None:
            raise ValueError(
                f"{type(self).__name__} gives a row one label, and cu_seqlens (or position_ids) say that it holds "
                f"{len(kwargs['cu_seqlens']) - 1} documents; give each its own row, padded, with attention_mask."
            )
        return super().forward(*args, **kwargs)


class RecurrentForTokenClassification(GenericForTokenClassification, RecurrentPreTrainedModel):
    r"""A label for each token: transformers' `GenericForTokenClassification`; packed documents are taken.

    Example:
        >>> import torch
        >>> from fla_bdlru import BDLRUConfig, BDLRUForTokenClassification
        >>> config = BDLRUConfig(hidden_size=32, num_hidden_layers=1, vocab_size=50, pad_token_id=0, num_labels=3)
        >>> model, rows = BDLRUForTokenClassification(config).eval(), torch.tensor([[5, 6, 7], [8, 0, 0]])
        >>> logits = model(rows, attention_mask=(rows != 0).long()).logits
        >>> assert logits.shape == (2, 3, 3)
    """

    accepts_loss_kwargs = False  # as above

    def __init__(self, config: RecurrentConfig) -> None:
        super(GenericForTokenClassification, self).__init__(config)  # as above
        self.num_labels = config.num_labels
        self.loss_type = "ForTokenClassification"
        self.model = base_model(config)
        rates = (getattr(config, field, None) for field in ("classifier_dropout", "hidden_dropout"))
        self.dropout = nn.Dropout(next((rate for rate in rates if rate is not None), 0.1))
        bias = getattr(config, "token_classification_bias", True)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=bias)
        self.post_init()


class RecurrentForMaskedLM(RecurrentPreTrainedModel):
    r"""The tokens that were masked, from both sides: needs `config.bidirectional=True`.

    Example:
        >>> import torch
        >>> from fla_bdlru import BDLRUConfig, BDLRUForMaskedLM
        >>> config = BDLRUConfig(hidden_size=32, num_hidden_layers=1, vocab_size=50, pad_token_id=0, bidirectional=True)
        >>> model, rows = BDLRUForMaskedLM(config).eval(), torch.tensor([[5, 6, 7], [8, 0, 0]])
        >>> logits = model(rows, attention_mask=(rows != 0).long()).logits
        >>> assert logits.shape == (2, 3, 50)
    """

    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        if not config.bidirectional:
            raise ValueError(f"bidirectional=False: {type(self).__name__} reads what is behind a mask; set it to True.")
        self.loss_type = "ForMaskedLM"
        self.model = base_model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """Logits `[B, T, V]`, and the loss where `labels` `[B, T]`, not shifted, are not -100.

        The loss is a mean, or a sum over `num_items_in_batch`, which Trainer counts over the batches that it accumulates; 0
        without a row.
        """
        kwargs["return_dict"] = True
        out = self.model(input_ids, attention_mask, inputs_embeds, output_hidden_states=output_hidden_states, **kwargs)
        logits = self.lm_head(out.last_hidden_state)
        loss = None
        if labels is not None:
            if not logits.numel():
                num_items_in_batch = 1  # a sum, where a mean over nothing is not a number
            how = {"vocab_size": self.config.vocab_size, "num_items_in_batch": num_items_in_batch}
            loss = self.loss_function(logits, labels, **how)
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


BDLRUForSequenceClassification, HLRUForSequenceClassification = families(
    RecurrentForSequenceClassification, AutoModelForSequenceClassification
)
BDLRUForTokenClassification, HLRUForTokenClassification = families(
    RecurrentForTokenClassification, AutoModelForTokenClassification
)
BDLRUForMaskedLM, HLRUForMaskedLM = families(RecurrentForMaskedLM, AutoModelForMaskedLM)
