"""Config of an OpenAI-compatible endpoint: URL, model, limits, and the name of the environment variable that
holds the API key."""

from typing import Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ChatConfig(BaseModel):
    """One endpoint, and how it is called."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )

    base_url: str
    """Base URL of the endpoint, including the version: http://127.0.0.1:8000/v1."""
    model: str
    """The model's name at the endpoint."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the API key; empty if the endpoint requires none."""
    max_concurrency: int = Field(default=64, ge=1)
    """Maximum number of concurrent calls, over all processes of the run; reduced automatically when more do
    not raise throughput."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Timeout of one attempt of a call."""
    max_retries: int = Field(default=5, ge=0)
    """Retries on lost connections, timeouts, and statuses 429 and 5xx."""
    backoff_s: float = Field(default=0.5, gt=0)
    """Mean wait before the first retry; it doubles with every further one."""
    max_calls: int | None = Field(default=None, ge=1)
    """Budget of calls of a run, retries included. Unset: no limit."""
    max_total_tokens: int | None = Field(default=None, ge=1)
    """Budget of tokens of a run, prompt and completion. Unset: no limit."""
    temperature: float | None = Field(default=0.7, ge=0)
    """Sampling temperature. Unset: the endpoint's default."""
    max_tokens: int = Field(default=512, ge=1)
    """Maximum length of a reply, reasoning included."""
    structured: bool = True
    """Whether the endpoint supports JSON schemas (`response_format`). Replies are validated in any case."""

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Self:
        """Validates the whole model: errors about one field repeat its value, which may be a secret here."""
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url must be a URL such as https://host/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "base_url must hold neither a password nor a query: put the key into an environment "
                "variable and name it in api_key_env"
            )
        if self.api_key_env and not self.api_key_env.isidentifier():
            raise ValueError("api_key_env is the NAME of an environment variable, never the key itself")
        return self
