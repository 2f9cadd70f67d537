"""Where a job runs and what it keeps: read from flags, the environment (HEADRACE_*) and headrace.toml, in this order."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from streams.lookup import client_options
from streams.routing import check_workers


class JobSettings(BaseSettings):
    """The settings of one job. Every field is also an environment variable, HEADRACE_ and its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="HEADRACE_", toml_file="headrace.toml", extra="forbid", hide_input_in_errors=True
    )

    brokers: str = Field("127.0.0.1:9092", description="Kafka bootstrap servers, host:port, comma-separated")
    kafka: dict[str, str] = Field({}, description="further librdkafka settings of every client; file:PATH, env:NAME: looked up")
    schema_registry: SecretStr = Field(SecretStr(""), description="http://HOST:PORT of the schema registry, for Avro")
    schema_registry_login: SecretStr = Field(SecretStr(""), description="USER:PASSWORD for it")
    secret_key: SecretStr = Field(
        SecretStr(""), description="file:PATH or env:NAME: the key that secret fields are hashed with"
    )
    dead_letter_key: SecretStr = Field(
        SecretStr(""), description="file:PATH or env:NAME: what encrypts dead letters of topics with secrets"
    )
    home: Path = Field(Path(".headrace"), description="what the job keeps: recovery store, model registry, data")
    registry: str = Field("", description="MLflow tracking URI; empty: SQLite in home")
    feast_repo: Path | None = Field(None, description="the Feast repo, before the one that the pipeline names")
    model_look_seconds: float = Field(30, ge=0, description="time between two looks for a new version of the model; 0: none")
    workers: int = Field(1, ge=1, le=64, description="processes on this machine")
    epoch_seconds: float = Field(0.25, gt=0, le=60, description="time between two snapshots")
    recovery: bool = Field(True, description="keep positions and state in home/recovery/PIPELINE")
    recovery_partitions: int = Field(0, ge=0, le=64, description="files of the recovery store; 0: as it has; new: one a worker")
    restart_deaths: int = Field(
        10, ge=0, description="with --restart: after how many deaths within restart_seconds it gives up"
    )
    restart_seconds: float = Field(600, gt=0, description="see restart_deaths")
    machines: int = Field(1, ge=1, le=64, description="that the job runs on, each with so many workers and a part of its state")
    machine: int = Field(0, ge=0, le=63, description="the number of this one")
    meeting: str = Field(
        "", description="HOST:PORT of machine 0, where all meet before they start; workers listen on the ports after it"
    )
    cluster_host: str = Field("127.0.0.1", description="the address that this machine's workers have for the others")
    revision: str = Field("", description="of code and settings: machines that differ in it do not work together")
    poll_rows: int = Field(4096, ge=1, description="most messages taken from a partition at once")
    metrics_port: int = Field(9464, ge=0, le=65_535, description="worker k serves metrics and its health on port+k; 0: none")
    metrics_host: str = Field("127.0.0.1", description="the address that metrics and health are served on")
    log: Literal["text", "json"] = Field("text", description="what a running job says: text, or a JSON object a line on stderr")
    trace_share: float = Field(0, ge=0, le=1, description="share of the batches that OpenTelemetry traces; 0: it is not loaded")
    health_port: int = Field(0, ge=0, le=65_535, description="the health of all workers together is served there; 0: nowhere")
    page_port: int = Field(0, ge=0, le=65_535, description="the live page is served on 127.0.0.1:port; 0: nowhere")
    order: str = Field("", pattern="^(arrival|event)?$", description="overrides the topic's order")
    delivery: str = Field("", pattern="^(at_least_once|exactly_once)?$", description="overrides the pipeline's delivery")
    stored_age: Literal["event", "wall"] = Field(
        "event", description="stored features' age: at the event's time, or by the clock"
    )
    stored_refresh_seconds: float = Field(600, gt=0, description="how long a stored row is good before it is read again")
    stored_patience_seconds: float = Field(0.1, ge=0, description="how long an event waits for the store to know its entity")
    stored_entities: int = Field(1_000_000, ge=1, description="most rows of a feature view that a worker holds")

    _divides = field_validator("workers")(check_workers)

    @model_validator(mode="after")
    def _meet(self) -> Self:
        check_workers(self.machines * self.workers)
        if self.machine >= self.machines:
            raise ValueError(f"setting machine {self.machine}: expected less than machines, which is {self.machines}")
        return self

    @property
    def client(self) -> dict[str, str]:
        """`kafka` as a client takes it, with what is secret looked up: for every Kafka client. Raises SecretError."""
        return client_options(self.kafka)

    @property
    def registry_uri(self) -> str:
        """The MLflow tracking URI in force."""
        return self.registry or f"sqlite:///{(self.home / 'mlflow.db').absolute()}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)
