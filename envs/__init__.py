"""The training run as an environment: plan, knobs, lanes, observation, reward, and the environments themselves."""
