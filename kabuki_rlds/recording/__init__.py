"""Records the episodes of an environment or a robot to a dataset, step by step.

Public entry points:

environments        `record`, which wraps a dm_env or Gymnasium environment
logger              `Logger`, which needs no environment
envlogger_backend   `EnvLoggerBackend`, for EnvLogger

Internal modules:

field_learner, growing_columns, open_episode, …   the fields and steps of the current episode, as columns
episode_stream, recorder                          begin, end and write episodes
destination, rlds_…, hdf5_destination             write to an RLDS dataset or an HDF5 file, and recover after a kill
"""
