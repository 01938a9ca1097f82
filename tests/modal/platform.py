"""A stand-in for Modal's control plane: the real client deploys to it over gRPC, offline.

It answers as little as `modal deploy`, secrets and the autoscaler need, and remembers what it was
told: that is what the tests read.
"""

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from grpclib.server import Server, Stream
from modal_proto import api_grpc, api_pb2

Answer = Callable[["Platform", Any], Any]


class Platform:
    """`with Platform(secrets={"name": ["KEY"]}) as platform`; `platform.environ` for the client."""

    def __init__(self, secrets: dict[str, list[str]] | None = None, silent: bool = False) -> None:
        self.secrets = secrets or {}  # name -> keys, of the named ones
        self.silent = silent  # takes calls and never answers
        self.calls: list[tuple[str, Any]] = []
        self.entries: dict[bytes, bytes] = {}  # of the one shared dictionary
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def requests(self, name: str) -> list[Any]:
        """The requests of one kind, in order."""
        return [request for kind, request in self.calls if kind == name]

    def wait_for(self, name: str, seconds: float = 60) -> None:
        """Until a request of this kind has come."""
        end = time.monotonic() + seconds
        while not self.requests(name):
            assert time.monotonic() < end, f"no {name} came"
            time.sleep(0.05)

    def files(self) -> set[str]:
        """Remote paths of every file that was mounted."""
        return {
            file.filename for request in self.requests("MountGetOrCreate") for file in request.files
        }

    def is_deployed(self) -> bool:
        """Whether an app was published to stay (a `modal run` publishes one for its time)."""
        return any(
            told.app_state == api_pb2.APP_STATE_DEPLOYED for told in self.requests("AppPublish")
        )

    @property
    def environ(self) -> dict[str, str]:
        return {
            "MODAL_SERVER_URL": f"http://127.0.0.1:{self.port}",
            "MODAL_TOKEN_ID": "ak-test",
            "MODAL_TOKEN_SECRET": "as-test",
        }

    # -- the server --------------------------------------------------------------------------------

    def __enter__(self) -> "Platform":
        self._thread.start()
        assert self._ready.wait(60), "the stand-in did not start"
        return self

    def __exit__(self, *_exc: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = Server([self])
        await server.start("127.0.0.1", 0)
        self.port = server._server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        await server.wait_closed()

    def __mapping__(self) -> dict[str, Any]:
        return api_grpc.ModalClientBase.__mapping__(self)

    def __getattr__(self, name: str) -> Callable[[Stream], Any]:
        if name.startswith("_"):
            raise AttributeError(name)

        async def handle(stream: Stream) -> None:
            request = await stream.recv_message()
            self.calls.append((name, request))
            if self.silent:
                await asyncio.sleep(600)
            if name == "FunctionGetInputs":  # no caller ever comes
                await self._over.wait()
            if name == "DictContents":
                for key, value in self.entries.items():
                    await stream.send_message(api_pb2.DictEntry(key=key, value=value))
                return
            if name not in ANSWERS:
                raise GRPCError(Status.UNIMPLEMENTED, f"the stand-in has no {name}")
            await stream.send_message(ANSWERS[name](self, request))

        return handle


# -- answers ---------------------------------------------------------------------------------------


def secret(platform: Platform, request: Any) -> Any:
    name = request.deployment_name
    if not name:  # an anonymous one
        return api_pb2.SecretGetOrCreateResponse(secret_id=f"st-{len(platform.calls)}")
    if name not in platform.secrets:
        raise GRPCError(Status.NOT_FOUND, f"Secret '{name}' not found in environment 'main'")
    keys = platform.secrets[name]
    if missing := set(request.required_keys) - set(keys):
        raise GRPCError(Status.FAILED_PRECONDITION, f"Secret '{name}' lacks {missing}")
    metadata = api_pb2.SecretMetadata(name=name, keys=keys)
    return api_pb2.SecretGetOrCreateResponse(secret_id=f"st-{name}", metadata=metadata)


def update_secret(platform: Platform, request: Any) -> Any:
    name = request.secret_id.removeprefix("st-")
    platform.secrets[name] = [*platform.secrets[name], *(one.key for one in request.updates)]
    return Empty()


def image(platform: Platform, request: Any) -> Any:
    image_id = f"im-{hashlib.sha256(request.SerializeToString()).hexdigest()[:12]}"
    metadata = api_pb2.ImageMetadata(image_builder_version=BUILDER, python_version_info="3.11")
    return api_pb2.ImageGetOrCreateResponse(image_id=image_id, result=SUCCESS, metadata=metadata)


def function_handle(name: str, definition: Any) -> Any:
    methods = {
        method_name: api_pb2.FunctionHandleMetadata(
            function_name=method.function_name, is_method=True, web_url=web_url(method)
        )
        for method_name, method in definition.method_definitions.items()
    }
    return api_pb2.FunctionHandleMetadata(function_name=name, method_handle_metadata=methods)


def web_url(method: Any) -> str:
    return f"https://someone--{method.webhook_config.requested_suffix}.modal.run"


def data_of(request: Any) -> Any:
    """What the platform keeps of a function, whatever the number of its kinds of GPU."""
    definition, data = request.function, request.function_data
    if data.ranked_functions:
        return data
    return api_pb2.FunctionData(
        module_name=definition.module_name,
        function_name=definition.function_name,
        timeout_secs=definition.timeout_secs,
        autoscaler_settings=definition.autoscaler_settings,
        ranked_functions=[api_pb2.FunctionData.RankedFunction(rank=0, function=definition)],
    )


def function(platform: Platform, request: Any) -> Any:
    data = data_of(request)
    first = data.ranked_functions[0].function
    return api_pb2.FunctionCreateResponse(
        function_id=f"fu-{data.function_name}",
        function=first,
        function_data=data,
        handle_metadata=function_handle(data.function_name, first),
    )


def deployed(platform: Platform, request: Any) -> Any:
    """The service function of a deployed class, as a lookup by name finds it."""
    for told in platform.requests("FunctionCreate") if platform.is_deployed() else []:
        data = data_of(told)
        if data.function_name == request.object_tag:
            first = data.ranked_functions[0].function
            return api_pb2.FunctionGetResponse(
                function_id=f"fu-{request.object_tag}",
                handle_metadata=function_handle(request.object_tag, first),
                function=data,
            )
    raise GRPCError(Status.NOT_FOUND, f"no {request.object_tag} in {request.app_name}")


def update_dict(platform: Platform, request: Any) -> Any:
    platform.entries |= {entry.key: entry.value for entry in request.updates}
    return api_pb2.DictUpdateResponse(created=True)


BUILDER = "2026.10"
SUCCESS = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)
ANSWERS: dict[str, Answer] = {
    "ClientHello": lambda p, r: api_pb2.ClientHelloResponse(),
    "EnvironmentGetOrCreate": lambda p, r: api_pb2.EnvironmentGetOrCreateResponse(
        environment_id="en-1",
        metadata=api_pb2.EnvironmentMetadata(
            name="main", settings=api_pb2.EnvironmentSettings(image_builder_version=BUILDER)
        ),
    ),
    "AppGetByDeploymentName": lambda p, r: api_pb2.AppGetByDeploymentNameResponse(),
    "AppGetOrCreate": lambda p, r: api_pb2.AppGetOrCreateResponse(app_id="ap-1"),
    "AppCreate": lambda p, r: api_pb2.AppCreateResponse(app_id="ap-1"),
    "AppGetLayout": lambda p, r: api_pb2.AppGetLayoutResponse(app_layout=api_pb2.AppLayout()),
    "AppPublish": lambda p, r: api_pb2.AppPublishResponse(
        url="https://modal.com/apps/someone", deployed_at=1
    ),
    "AppGetLogs": lambda p, r: api_pb2.TaskLogsBatch(app_done=True),
    "AppHeartbeat": lambda p, r: Empty(),
    "AppClientDisconnect": lambda p, r: Empty(),
    "AppStop": lambda p, r: Empty(),
    "SecretGetOrCreate": secret,
    "SecretUpdate": update_secret,
    "DictGetOrCreate": lambda p, r: api_pb2.DictGetOrCreateResponse(dict_id="di-1"),
    "DictUpdate": update_dict,
    "VolumeGetOrCreate": lambda p, r: api_pb2.VolumeGetOrCreateResponse(
        volume_id=f"vo-{r.deployment_name}",
        metadata=api_pb2.VolumeMetadata(name=r.deployment_name),
    ),
    "MountBatchedCheckExistence": lambda p, r: api_pb2.MountBatchedCheckExistenceResponse(),
    "MountPutFile": lambda p, r: api_pb2.MountPutFileResponse(exists=True),
    "MountGetOrCreate": lambda p, r: api_pb2.MountGetOrCreateResponse(
        mount_id=f"mo-{len(p.calls)}",
        handle_metadata=api_pb2.MountHandleMetadata(content_checksum_sha256_hex="0" * 64),
    ),
    "ImageGetOrCreate": image,
    "FunctionPrecreate": lambda p, r: api_pb2.FunctionPrecreateResponse(
        function_id=f"fu-{r.function_name}", handle_metadata=function_handle(r.function_name, r)
    ),
    "FunctionCreate": function,
    "ClassCreate": lambda p, r: api_pb2.ClassCreateResponse(
        class_id="cs-1", handle_metadata=api_pb2.ClassHandleMetadata()
    ),
    "ClassGet": lambda p, r: api_pb2.ClassGetResponse(class_id="cs-1"),
    "FunctionGet": deployed,
    # What a container asks.
    "ContainerHello": lambda p, r: Empty(),
    "ContainerHeartbeat": lambda p, r: api_pb2.ContainerHeartbeatResponse(),
    "FunctionGetDynamicConcurrency": lambda p, r: api_pb2.FunctionGetDynamicConcurrencyResponse(
        concurrency=100
    ),
    "TaskResult": lambda p, r: Empty(),
    "VolumeCommit": lambda p, r: api_pb2.VolumeCommitResponse(),
    "FunctionUpdateSchedulingParams": lambda p, r: api_pb2.FunctionUpdateSchedulingParamsResponse(
        current_settings=r.settings
    ),
}
