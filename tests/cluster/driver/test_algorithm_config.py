"""`GRPOConfig`: changes of nested sections keep the other keys, and another `type` replaces its section."""

from cluster.driver.algorithm import GRPOConfig
from learners.advantages.config import SpreadConfig, TurnGaeConfig
from learners.loss_config import GspoConfig, PpoConfig


def test_a_section_keeps_its_other_keys_unless_its_type_changes() -> None:
    config = GRPOConfig().training(learner={"loss": {"clip_low": 0.1}, "advantage": {"gamma": 0.5}})
    config.training(learner={"loss": {"clip_high": 0.3}})
    assert config.run.learner.loss == PpoConfig(clip_low=0.1, clip_high=0.3)
    assert config.run.learner.advantage == SpreadConfig(gamma=0.5)
    config.training(learner={"loss": {"type": "gspo", "clip_low": 0.2}, "advantage": "turn_gae"})
    assert config.run.learner.loss == GspoConfig(clip_low=0.2)
    assert config.run.learner.advantage == TurnGaeConfig()
