"""Who decides: constants, schedules, optimizers of other libraries, learned policies and their files."""
