"""Recording: what an environment, or a robot, does becomes a dataset as it happens.

environments   `record`, which wraps an environment of dm_env or Gymnasium
logger         `Logger`, without an environment
envlogger      `EnvLoggerBackend`, for EnvLogger

columns, images, learning, episode   the steps of an episode, in columns
stream, recorder                     one episode after the other
destination, dataset                 where they go, and what survives a kill
"""
