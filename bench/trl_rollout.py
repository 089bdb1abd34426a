"""TRL's side of the rollout benchmark: its GRPO trainer generates a batch of dialogues with our gyms behind
`environment_factory`. Nothing is learned."""

import asyncio
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from tokenizers import normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl.chat_template_utils import qwen3_template
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from bench.rollout_totals import Played
from cluster.config.run_config import RunConfig
from simulators.config import SimulatorConfig
from simulators.env import GymEnv
from simulators.gym import Gym
from simulators.gyms import GYMS
from simulators.message import TOOL_SCHEMA, Action, Choice
from simulators.persona import PersonaMix, draw_persona
from simulators.task import TaskKey
from simulators.users.delayed_user import DelayedUser
from simulators.users.rule_user import RuleUser

MARK = "\ue000"
END_WORDS = " end"
"""Repeated beyond what a dialogue may hold: TRL ends a dialogue whose tool result does not fit, and knows no
other way for an environment to end one. So neither side says a word after the end."""


class GymAsTrlEnvironment:
    """One dialogue as TRL asks for it: a method a tool, called from no event loop. The user is the rule-based
    one, in process: nothing is sent anywhere. It may take its time, as ours does."""

    gyms: Mapping[str, Gym] = GYMS
    personas: PersonaMix = SimulatorConfig().personas
    max_tokens = 0
    delay_s = 0.0

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._score = 0.0
        self.num_turns = 0

    def reset(self, **row: Any) -> None:
        """Begins the row's task."""
        key = TaskKey(
            gym=row["gym"], split="train", index=row["index"], seed=row["seed"], difficulty=row["difficulty"]
        )
        gym = self.gyms[key.gym]
        persona = draw_persona(self.personas, seed=key.task_id)
        user = DelayedUser(RuleUser(self.gyms), delay_s=self.delay_s)
        self._env = GymEnv(gym, task=gym.make_task(key), user=user, persona=persona)
        self._score, self.num_turns = 0.0, 0

    def interact_with_env(self, choice: Choice, content: str) -> str:
        """Speak to the user or use the environment.

        Args:
            choice: What to do.
            content: What to say.
        """
        step = self._loop.run_until_complete(self._env.step(str(Action(choice=choice, content=content))))
        self._score += step.reward
        self.num_turns += 1
        if step.terminated or step.truncated:
            return step.feedback + END_WORDS * self.max_tokens
        return step.feedback

    def get_reward(self) -> float:
        return self._score


class TrlRollout:
    """TRL's trainer, made once; `play` generates one batch."""

    def __init__(self, policy_folder: str, *, config: RunConfig, output_dir: str, use_vllm: bool = False):
        """`config` says what a batch is, and its limits."""
        rollout = config.rollout
        self._group_size = rollout.group_size
        most = rollout.max_completion_tokens
        GymAsTrlEnvironment.max_tokens = config.engine.max_model_len
        tokenizer = _prefix_preserving(AutoTokenizer.from_pretrained(policy_folder))
        args = GRPOConfig(
            output_dir=output_dir,
            per_device_train_batch_size=config.buffer.groups_per_step * rollout.group_size,
            num_generations=rollout.group_size,
            max_completion_length=config.engine.max_model_len - most,
            generation_kwargs={"max_tokens" if use_vllm else "max_new_tokens": most},
            temperature=rollout.temperature,
            top_k=0,
            beta=0.0,
            bf16=False,
            use_cpu=True,
            report_to="none",
            use_vllm=use_vllm,
            vllm_mode="colocate",
            model_init_kwargs={"dtype": "float32"},
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._trainer: Any = GRPOTrainer(
                model=policy_folder,
                reward_funcs=[],
                args=args,
                train_dataset=Dataset.from_list([{"prompt": "unused"}]),
                processing_class=tokenizer,
                environment_factory=GymAsTrlEnvironment,
            )
        self._trainer.current_gradient_accumulation_steps = 1

    def play(self, keys: Sequence[TaskKey], *, delay_s: float) -> Played:
        """A group of each task, all in one batch, with users who take `delay_s` in the mean."""
        GymAsTrlEnvironment.delay_s = delay_s
        rows = [_row(key) for key in keys for _ in range(self._group_size)]
        began = time.perf_counter()
        batch = self._trainer._generate_and_score_completions(rows)
        seconds = time.perf_counter() - began
        said = batch["tool_mask"] * batch["completion_mask"]
        return Played(
            seconds=seconds,
            num_trajectories=len(rows),
            num_turns=sum(environment.num_turns for environment in self._trainer.environments),
            num_tokens=int(said.sum()),
        )


def _row(key: TaskKey) -> dict[str, Any]:
    gym = GYMS[key.gym]
    opening = gym.make_task(key).opening
    prompt = [{"role": "system", "content": gym.system}, {"role": "user", "content": opening}]
    return {
        "prompt": prompt,
        "gym": key.gym,
        "index": key.index,
        "seed": key.seed,
        "difficulty": key.difficulty,
    }


def _prefix_preserving(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tiny policy's tokenizer in the form that TRL asks for: a message's ids are the same whatever comes.

    The text and the ids stay those of our renderer. The line break between two messages moves to the later
    one, and a mark that is no token keeps a completion's stop token from merging with the header after it.
    """
    template = str(tokenizer.chat_template).replace("<|im_end|>\\n'", "<|im_end|>'")
    first, *later = template.split("'<|im_start|>")
    heads = [f"'<|im_start|>{later[0]}", *(f"'\\n<|im_start|>{part}" for part in later[1:])]
    template = "".join([first, *heads]).replace(
        "{{- '<|im_end|>' }}\n  {%- elif", f"{{{{- '<|im_end|>{MARK}' }}}}\n  {{%- elif"
    )
    # TRL words a tool's schema by its docstring; the policy reads the one that it was taught.
    tokenizer.chat_template = template.replace("tool | tojson", f"'{json.dumps(TOOL_SCHEMA)}'")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(MARK, "")  # type: ignore[attr-defined]
    # Tool calls are in Qwen3's form; TRL knows templates by their exact text, and this one it does not.
    tokenizer.response_template = qwen3_template  # type: ignore[attr-defined]
    return tokenizer
