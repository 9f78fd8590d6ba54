"""What the server answers: the page, pictures by their numbers, and the edits as JSON."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from contextvars import Context
from typing import Any

from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from lorapipe_dataset.check.edit.asked import read_edit, read_object
from lorapipe_dataset.check.edit.desk import Closed, Desk
from lorapipe_dataset.check.edit.gate import JSON, Environ, Start
from lorapipe_dataset.check.edit.images import Images
from lorapipe_dataset.check.reports.page import edit_page
from lorapipe_engine.command.tool import failure, show, show_trace
from lorapipe_engine.errors import LoraError

PATHS = Map(
    [
        Rule("/", endpoint="page", methods=["GET"]),
        Rule("/thumb/<int:number>", endpoint="thumb", methods=["GET"]),
        Rule("/picture/<int:number>", endpoint="picture", methods=["GET"]),
        Rule("/api/state", endpoint="state", methods=["GET"]),
        Rule("/api/changes", endpoint="changes", methods=["GET"]),
        Rule("/api/edit", endpoint="edit", methods=["POST"]),
        Rule("/api/undo", endpoint="undo", methods=["POST"]),
        Rule("/api/redo", endpoint="redo", methods=["POST"]),
    ],
    merge_slashes=False,
    redirect_defaults=False,
)
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; style-src 'unsafe-inline'; "
    "script-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_OWN_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>\n?')
FOR_LONG = "private, max-age=31536000, immutable"


class Routes:
    """A WSGI application. ``context``: the settings of the command, such as whether it is to be quiet."""

    def __init__(self, desk: Desk, images: Images, context: Context, *, verbose: bool) -> None:
        self._desk = desk
        self._images = images
        self._context = context
        self._verbose = verbose

    def __call__(self, environ: Environ, start: Start) -> Any:
        # A context is one thread's at a time.
        response = self._context.copy().run(self._respond, Request(environ))
        return response(environ, start)

    def _respond(self, request: Request) -> Response:
        try:
            endpoint, values = PATHS.bind_to_environ(request.environ).match()
            answer: Callable[..., Response] = getattr(self, f"_{endpoint}")
            return answer(request, **values)
        except HTTPException as error:
            return Response(status=error.code or 404)
        except Closed as error:
            return _json({"error": str(error)}, 503)
        except LoraError as error:
            return _json({"error": self._desk.shelf.plain(str(error))}, 400)
        except Exception as error:
            if self._verbose:
                show_trace(error)
            show(f"lora-check: {failure(error)}", err=True)
            return _json({"error": f"{type(error).__name__}: see what lora-check says in its terminal"}, 500)

    # ------------------------------------------------------------------------ what is shown

    def _page(self, _request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        text = _OWN_POLICY.sub("", edit_page(self._desk.page()), count=1)
        text = text.replace("<script>", f'<script nonce="{nonce}">')
        response = Response(text.encode("utf-8", "replace"), content_type="text/html; charset=utf-8")
        response.headers["Content-Security-Policy"] = POLICY.format(nonce=nonce)
        return response

    def _thumb(self, request: Request, number: int) -> Response:
        item = self._desk.item(number)
        return self._image(request, number, "image/jpeg", None if item is None else self._images.small(item))

    def _picture(self, request: Request, number: int) -> Response:
        item = self._desk.item(number)
        held = None if item is None else self._images.whole(item)
        return self._image(request, number, *(held or ("", None)))

    def _image(self, request: Request, number: int, kind: str, data: bytes | None) -> Response:
        if data is None:
            return Response(status=404)
        response = Response(data, content_type=kind)
        item = self._desk.item(number)
        if item is not None and item.image and request.args.get("v") == item.image:
            response.headers["Cache-Control"] = FOR_LONG
        return response

    def _state(self, _request: Request) -> Response:
        return _json(self._desk.state())

    def _changes(self, request: Request) -> Response:
        return _json(self._desk.changes(request.args.get("since", 0, type=int)))

    # ------------------------------------------------------------------------ what is done

    def _edit(self, request: Request) -> Response:
        return _json(self._desk.edit(read_edit(read_object(request.get_data()), len(self._desk.shelf.items))))

    def _undo(self, request: Request) -> Response:
        read_object(request.get_data())
        return _json(self._desk.undo())

    def _redo(self, request: Request) -> Response:
        read_object(request.get_data())
        return _json(self._desk.redo())


def _json(value: dict[str, Any], status: int = 200) -> Response:
    # Bytes of a name that are no UTF-8 stay escapes.
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Response(text, status=status, content_type=JSON)
