"""``/v1/models``: what is served, as OpenAI tells it."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import UNSET, Meta
from starlette.requests import Request
from starlette.responses import Response

from pluribus.interfaces import ModelSpec
from pluribus.server.body import answer
from pluribus.server.errors import ApiError, shorten
from pluribus.server.schema import Note, ResponseBody, note_of

if TYPE_CHECKING:
    from pluribus.front import Front


class ModelResponse(ResponseBody, frozen=True, kw_only=True):
    """A model."""

    id: Annotated[str, Meta(description="Its name, as `model` of a request.")]
    object: Annotated[Literal["model"], Meta(description="Always `model`.")] = "model"
    created: Annotated[int, Meta(description="When the server started, in seconds since 1970.")]
    owned_by: Annotated[str, Meta(description="Always `pluribus`.")] = "pluribus"
    max_model_len: Annotated[
        int, Meta(description="Tokens of prompt and answer together that it takes.")
    ]
    note: Note = UNSET


class ModelsResponse(ResponseBody, frozen=True, kw_only=True):
    """The models served: one."""

    object: Annotated[Literal["list"], Meta(description="Always `list`.")] = "list"
    data: Annotated[list[ModelResponse], Meta(description="The models.")]


class ModelEndpoints:
    """Tells what is served."""

    def __init__(self, service: Front) -> None:
        spec = service.spec
        self._spec = spec
        self._model = ModelResponse(
            id=spec.name,
            created=service.started,
            max_model_len=spec.max_length,
            note=note_of(spec.notes),
        )

    async def list_models(self, _: Request) -> Response:
        """List the models served."""
        return answer(ModelsResponse(data=[self._model]))

    async def retrieve_model(self, request: Request) -> Response:
        """Tell about a model."""
        check_model(self._spec, request.path_params["model"])
        return answer(self._model)


def check_model(spec: ModelSpec, name: str | None) -> None:
    """Raise ApiError if ``name`` names a model other than the one that is served."""
    if name not in (None, spec.name):
        raise ApiError(
            HTTPStatus.NOT_FOUND,
            f"model: '{shorten(name or '')}' is not served here; leave it out, or name {spec.name}",
            code="model_not_found",
            param="model",
        )
