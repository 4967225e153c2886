"""Sampling through vLLM: TRL's `VLLMGeneration`, with this step's weights and without tokens that no answer has."""

from typing import Any

from transformers import ProcessorMixin, Trainer
from trl.generation.vllm_generation import VLLMGeneration

from ..errors import ConfigError, ModelError, first_line


# vLLM takes biases of no more tokens, and none below; where there are more, those of pictures and those declared
# special go first
MAX_BIASED, NEVER = 1024, -100.0


def make_bias(processor: ProcessorMixin, ids: set[int]) -> dict[int, float]:
    """
    Returns the `logit_bias` by which vLLM is told what not to sample.
    """
    pictures = {value for name, value in vars(processor).items() if name.endswith("_token")}
    added = processor.tokenizer.added_tokens_decoder

    def rank(number: int) -> tuple[bool, bool, int]:
        token = added.get(number)
        return token is None or token.content not in pictures, token is None or not token.special, number

    return dict.fromkeys(sorted(ids, key=rank)[:MAX_BIASED], NEVER)


class VLLMSampler:
    """
    Lets vLLM sample the answers of on-policy micro-batches.

    Raises:
        ConfigError: if vLLM cannot be reached or started.
        ModelError: if vLLM would read pictures in other sizes than training does.
    """

    def __init__(self, trainer: Trainer, ends: list[int], suppressed: set[int]):
        self.trainer, self.suppressed = trainer, suppressed
        args, processor = trainer.args, trainer.processing_class
        self.vocab_size = trainer.accelerator.unwrap_model(trainer.model).config.get_text_config().vocab_size
        sizes = [name for name in ("min_pixels", "max_pixels") if getattr(args, name) is not None]
        if sizes and not hasattr(processor.image_processor, "merge_size"):
            raise ModelError(
                f"`{sizes[0]}: {getattr(args, sizes[0])}` does not go with `use_vllm: true`: vLLM reads pictures by "
                "the processor beside the model. Set it there, or leave it out."
            )
        kwargs = dict(args.generation_kwargs or {})
        kwargs |= {"logit_bias": make_bias(processor, suppressed), "stop_token_ids": ends}
        try:
            self.vllm = _start(trainer, kwargs)
        except Exception as error:
            raise ConfigError(f"vLLM cannot be used: {first_line(error)}") from error
        self._loaded_step = -1

    def sample(self, batches: list[dict[str, Any]], step: int) -> list[list[list[int]]]:
        """
        Samples an answer to each prompt of the vision-rich side, all at once.

        Args:
            batches (`list[dict[str, Any]]`):
                Batches of the collator.
            step (`int`):
                Optimizer steps taken; in a new one vLLM gets the weights first.

        Returns:
            `list[list[list[int]]]`: of each batch the tokens of the answers, with the ends of those that came to one.

        Raises:
            ModelError: if vLLM reads a prompt otherwise than training does, or samples what no answer has.
        """
        if step != self._loaded_step:
            self._load_weights()
            self._loaded_step = step
        prompts = [each["prompts"] for each in batches]
        expanded = [ids for each in prompts for ids in each.rows()]
        short = [ids for each in prompts for ids in each.unexpanded]
        images = [row or None for each in prompts for row in each.images]
        # Workaround (TRL 1.16, huggingface/trl#6294): a colocated vLLM expands the place of a picture itself, and
        # would expand one that is expanded once more; a server is told where the tokens of pictures are
        given = short if self.vllm.mode == "colocate" else expanded
        read, answers, _, _ = self.vllm.generate(given, images if any(images) else None, num_generations=1)
        row_ids = [row_id for each in batches for row_id in each["row_id"]]
        for row_id, sent, wanted, ids, answer in zip(row_ids, given, expanded, read, answers, strict=True):
            if list(ids) not in (sent, wanted):
                raise ModelError(
                    f"Row {row_id}: vLLM reads its prompt as {len(ids)} tokens, training as {len(wanted)}. Let the "
                    "processor beside the model be the one that training uses."
                )
            self._check_answer(row_id, answer)
        rows = iter([list(answer) for answer in answers])
        return [[next(rows) for _ in each["row_id"]] for each in batches]

    def _load_weights(self) -> None:
        """Gives vLLM the weights of this step, and lets it forget what it has read by those before."""
        self.vllm.sync_weights()
        # Workaround (TRL 1.16, no upstream issue found): that resets the keys and values alone, and vLLM would go on
        # with what the vision tower of an earlier step has made of a picture
        if self.vllm.mode == "colocate":
            self.vllm.llm.llm_engine.reset_encoder_cache()
        elif self.trainer.accelerator.is_main_process:
            client = self.vllm.vllm_client
            response = client.session.post(f"{client.base_url}/reset_encoder_cache")  # which answers without a body
            response.raise_for_status()

    def _check_answer(self, row_id: str, answer: list[int]) -> None:
        """Makes sure of what vLLM was told: a token of a picture would stand for one in the batch."""
        if not answer:
            raise ModelError(f"Row {row_id}: vLLM sampled no token. Look into its log.")
        for token in answer:
            if token in self.suppressed or token >= self.vocab_size:
                name = self.trainer.processing_class.tokenizer.convert_ids_to_tokens(token)
                raise ModelError(
                    f"Row {row_id}: vLLM sampled the token {token} ({name!r}), which no answer may have. Set `min_p` "
                    "or `top_p`, which leave unlikely tokens out."
                )


def _start(trainer: Trainer, kwargs: dict[str, Any]) -> VLLMGeneration:
    """Starts vLLM, or connects to its server, as TRL's `DistillationTrainer` does."""
    args = trainer.args
    return VLLMGeneration(
        model=trainer.model,
        accelerator=trainer.accelerator,
        processing_class=trainer.processing_class,
        mode=args.vllm_mode,
        server_base_url=args.vllm_server_base_url,
        server_host=args.vllm_server_host,
        server_port=args.vllm_server_port,
        server_timeout=args.vllm_server_timeout,
        group_port=args.vllm_group_port,
        tensor_parallel_size=args.vllm_tensor_parallel_size,
        gpu_memory_utilization=args.vllm_gpu_memory_utilization,
        max_model_length=args.vllm_max_model_length,
        max_num_seqs=args.per_device_train_batch_size
        * args.vllm_tensor_parallel_size
        * args.gradient_accumulation_steps,
        enable_sleep_mode=args.vllm_enable_sleep_mode,
        model_impl=args.vllm_model_impl,
        trust_remote_code=args.trust_remote_code,
        repetition_penalty=args.repetition_penalty,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        max_completion_length=args.max_completion_length,
        logprobs=None,
        generation_kwargs=kwargs,
    )
