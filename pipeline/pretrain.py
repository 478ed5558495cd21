"""Pretraining: fit theta = (W_emb, all layers, W_out, b_out) to a corpus by next-token prediction.

    L(theta) = - sum_n sum_t log pi_theta(x_{t+1} | x_{1:t})                                        eq. (9)

    accelerate launch pipeline/pretrain.py --config configs/quickstart/pretrain.yaml

Data: text (prompt + completion and messages are joined to text). Without --model_name_or_path a byte-level BPE
tokenizer is trained on the corpus and a NarLM of the given shape starts from random weights; with it, pretraining
continues from any causal LM of the Hub or a folder, with its own tokenizer.

With --vision_model_name_or_path the text model gets an encoder and a projector before it, and learns from rows of
image and text (Part 1, section 5): h_j = W_proj v_j + b_proj at the places of an image, and no loss there.

Deviation from (9): documents are packed into blocks of max_length tokens, positions restart and attention stops at
each document's first token, and the loss is the mean over tokens, not the sum.
Loss: `objectives.likelihood.negative_log_likelihood` (tests/stages/test_losses.py::test_pretraining).
"""

from dataclasses import dataclass, field

from pipeline.runtime.arguments import StageArguments
from pipeline.runtime.entry import entry
from pipeline.runtime.files import is_local
from pipeline.runtime.record import Run
from pipeline.training.mistakes import refuse_mistakes


@dataclass
class PretrainArguments(StageArguments):
    """The shape of a new model, and how its corpus is cut. A shape field left out keeps the preset's value."""

    max_length: int = field(default=1024, metadata={"help": "Tokens per packed block."})
    vocab_size: int = field(default=8192, metadata={"help": "Maximum number of entries of a new tokenizer."})
    split_digits: bool = field(
        default=True, metadata={"help": "Make every digit a token of its own in a new tokenizer."}
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Tokenizer to use instead of training one: Hub id, folder, world/enumerable or world/maps."},
    )
    preset: str | None = field(default=None, metadata={"help": "Named shape: nano, micro, gpt2-124m, …"})
    hidden_size: int | None = field(default=None, metadata={"help": "Width d of the hidden states."})
    intermediate_size: int | None = field(default=None, metadata={"help": "Width of the feed-forward layers."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Number of layers L."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Number of attention heads n_head."})
    num_key_value_heads: int | None = field(
        default=None, metadata={"help": "Number of key/value heads (grouped queries)."}
    )
    sliding_window: int | None = field(
        default=None, metadata={"help": "Attention window Delta of every layer, in tokens."}
    )
    position_embedding_type: str | None = field(
        default=None, metadata={"help": "Position embedding: rope, learned or sinusoidal."}
    )
    norm_type: str | None = field(default=None, metadata={"help": "Normalisation: layernorm or rmsnorm."})
    ffn_type: str | None = field(default=None, metadata={"help": "Feed-forward activation: gelu or swiglu."})
    output_bias: bool | None = field(default=None, metadata={"help": "Whether the logits have the bias b_out."})
    tie_word_embeddings: bool | None = field(default=None, metadata={"help": "Whether W_out is W_emb transposed."})
    initializer_range: float | None = field(
        default=None, metadata={"help": "Standard deviation of the initial weights."}
    )

    def shape(self) -> dict:
        """The shape fields that were given."""
        names = set(PretrainArguments.__dataclass_fields__) - set(StageArguments.__dataclass_fields__)
        names -= {"max_length", "vocab_size", "split_digits", "tokenizer_name", "preset"}
        return {name: value for name in sorted(names) if (value := getattr(self, name)) is not None}


def main(argv: list[str] | None = None) -> None:
    """Run the stage; see the module's docstring."""
    with Run("pretrain", argv) as run:
        if run.done:
            return
        refuse_mistakes(run, "text")
        from transformers import TrainingArguments, set_seed

        from pipeline.data.arguments import DataArguments
        from pipeline.data.preparation import within_positions
        from pipeline.data.seen import words_of
        from pipeline.data.streaming import load_documents
        from pipeline.model.building import build_narlm, new_start
        from pipeline.model.policy import ModelArguments, load_policy, read_start, with_adapter
        from pipeline.model.sight import SightArguments, seeing_model
        from pipeline.model.vision import trained_with
        from pipeline.training.pretraining import PackedTrainer, batches_of
        from pipeline.training.session import train_and_save

        own, data_args, model_args, sight, config = run.parse(
            PretrainArguments, DataArguments, ModelArguments, SightArguments, TrainingArguments
        )
        set_seed(config.seed)
        start = read_start(model_args) if model_args.model_name_or_path else None
        data = load_documents(data_args, config.seed)
        run.add_data(data.sources)
        base, tokenizer = start or new_start(own, words_of(data.train), run.folder)
        within_positions(run, own, base, "blocks have")
        encoder = sight.vision_model_name_or_path
        batches = None if encoder else batches_of(data, data_args, tokenizer, own.max_length, config)
        if start:
            policy = load_policy(model_args, run, tokenizer)
            model, finish = policy.model if encoder else with_adapter(policy), policy.finish
        else:
            model, finish = build_narlm(base, model_args.attn_implementation), None
        if encoder:
            model = seeing_model(model, tokenizer, sight, config.seed)
            if is_local(encoder):
                run.add_parent(encoder)
        batches = batches or batches_of(data, data_args, tokenizer, own.max_length, config)
        trainer = PackedTrainer(model=model, args=config, processing_class=trained_with(tokenizer), **batches)
        train_and_save(run, trainer, own, finish)


if __name__ == "__main__":
    entry(main, PretrainArguments, __doc__)
