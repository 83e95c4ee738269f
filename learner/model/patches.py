"""Every patch of a third party on the learner's side: what it changes, why, and the test that says when it can go.

The code stands where `by` says. Each test runs upstream without the patch and asserts that the fault is still there:
when one fails after an upgrade, take the patch away.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One change to what a third party wrote."""

    upstream: str  # package and the version whose fault was last seen
    changes: str  # of upstream
    by: str  # module:function or module:Class that makes the change
    why: str
    test: str  # in tests/learner/model/test_patches.py


PATCHES = (
    Patch(
        upstream="transformers 5.19.0",
        changes="the attention of the Qwens' vision towers",
        by="learner.model.attention:install",
        why="it attends one picture at a time, unless the attention's name has `flash` in it",
        test="test_a_tower_attends_one_picture_at_a_time",
    ),
    Patch(
        upstream="transformers 5.19.0",
        changes="the class of the Conv3d that embeds patches",
        by="learner.model.vision_tower:speed_up_vision_tower",
        why="a convolution over patches as large as its kernel takes three times as long as the matrix product it is",
        test="test_a_patch_convolution_is_slower_than_a_product",
    ),
    Patch(
        upstream="transformers 5.19.0",
        changes="the class of QuickGELUActivation",
        by="learner.model.vision_tower:speed_up_vision_tower",
        why="it keeps two tensors for the backward pass, where one is enough, and takes six passes over memory",
        test="test_quick_gelu_keeps_more_than_its_input",
    ),
    Patch(
        upstream="transformers 5.19.0",
        changes="hooks on the last decoder layer",
        by="learner.model.last_layer:shorten",
        why="`logits_to_keep` spares the head, but the last layer still computes every token",
        test="test_the_last_layer_computes_tokens_that_nobody_reads",
    ),
    Patch(
        upstream="transformers 5.19.0",
        changes="the class of lm_head",
        by="learner.model.head:make_scoring_head",
        why="a forward gives (1, N, V) logits, the largest tensor of a step, where log-probs of N tokens are wanted",
        test="test_a_head_gives_all_logits",
    ),
    Patch(
        upstream="transformers 5.19.0",
        changes="the makers of docstrings",
        by="common.lean_imports:_leave_out_docstrings",
        why="the docstring of a model's configuration imports scikit-learn: a second of every start",
        test="test_a_configuration_imports_scikit_learn",
    ),
    Patch(
        upstream="peft 0.21.2",
        changes="`_disable_adapters` of LoRA layers",
        by="learner.model.lora:switch_off_adapters",
        why="the public `enable_adapters(False)` also takes `requires_grad` from the adapters",
        test="test_peft_freezes_adapters_that_are_off",
    ),
    Patch(
        upstream="torch 2.13.0",
        changes="scaled_dot_product_attention, while `--plan` traces",
        by="learner.memory.trace:_flash_attention",
        why="on the meta device it keeps an S x S matrix, which no device that trains does",
        test="test_attention_without_memory_keeps_a_matrix",
    ),
    Patch(
        upstream="torch 2.13.0",
        changes="flex_attention, while `--plan` traces",
        by="learner.memory.trace:_flash_attention",
        why="it refuses tensors of the meta device",
        test="test_flex_attention_refuses_tensors_without_memory",
    ),
    Patch(
        upstream="deepspeed 0.19.8",
        changes="build_shm_op",
        by="learner.trainer.zero:join_ranks",
        why="on a CPU it compiles a C++ extension for minutes, and fails where there is no compiler",
        test="test_deepspeed_builds_an_extension_at_start",
    ),
    Patch(
        upstream="deepspeed 0.19.8",
        changes="the checkpoint engine",
        by="learner.trainer.zero:CheckpointFiles",
        why="a write that fails on one rank is raised past the others, which then wait in a barrier",
        test="test_deepspeed_raises_on_a_full_disk",
    ),
    Patch(
        upstream="deepspeed 0.19.8",
        changes="`load` of the checkpoint engine",
        by="learner.trainer.zero:CheckpointFiles",
        why="it unpickles with `weights_only=False`: code in a checkpoint's file runs",
        test="test_deepspeed_runs_code_in_a_checkpoint",
    ),
    Patch(
        upstream="deepspeed 0.19.8",
        changes="`_copy_recovery_script` of the engine",
        by="learner.trainer.zero:build_training_engine",
        why="it is one more write that raises past the other ranks, of a script that nobody here runs",
        test="test_deepspeed_raises_where_no_script_can_be_copied",
    ),
    Patch(
        upstream="deepspeed 0.19.8",
        changes="`module_state_dict` of the engine",
        by="learner.trainer.zero:build_training_engine",
        why="without frozen parameters it still holds the second name of a tied one",
        test="test_deepspeed_keeps_a_frozen_tied_weight",
    ),
    Patch(
        upstream="deepspeed 0.19.8",
        changes="`enable_backward_allreduce` of the engine, for one rank at stage 0",
        by="learner.trainer.zero:build_training_engine",
        why="it copies all gradients to and fro for the mean over one rank",
        test="test_deepspeed_averages_over_one_rank",
    ),
)
