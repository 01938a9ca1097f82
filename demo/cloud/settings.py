"""A container's settings: the server's, with nothing left to be decided by itself.

Neither the page nor torch is loaded here, so that a check is quick.
"""

from collections.abc import Mapping
from dataclasses import replace

from demo.cloud.volume import is_repository
from engine.config import ServerConfig
from engine.errors import ConfigError
from engine.weights.hub import DEFAULT_REPOSITORY

HOST = "0.0.0.0"  # the platform asks for the port on the container's own address


def container_config(environ: Mapping[str, str], port: int) -> ServerConfig:
    """The settings, never `auto`: a paid GPU must not serve the built-in test voice in silence.

    Raises ConfigError.
    """
    config = ServerConfig.from_environment(environ, host=HOST, port=port)
    if config.model == "auto":
        config = replace(config, model=DEFAULT_REPOSITORY)
    if is_repository(config.model) and config.device == "auto":
        if environ.get("PERSONAPLEX_GPU", "").lower() == "none":
            raise ConfigError(
                f"PERSONAPLEX_GPU is none, which is too little for {config.model}; "
                "deploy with PERSONAPLEX_MODEL=embedded, or with a GPU"
            )
        config = replace(config, device="cuda")
    return config
