"""What a loop under control is: plan, knobs, telemetry, observation, guard, controller, ledger; in torch alone."""
