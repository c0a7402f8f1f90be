"""A page of one picture and a text, in one file that loads nothing from elsewhere."""

import base64
import html
import io
from typing import Any

_STYLE = "body{font:14px sans-serif;max-width:1200px;margin:2em auto}img{width:100%}"


def png(figure: Any) -> bytes:
    """A matplotlib figure as PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def picture_page(title: str, picture: bytes, *, alt: str, text: str) -> str:
    """The page as HTML.

    Args:
      title: its heading.
      picture: PNG.
      alt: what the picture shows.
      text: lines below the picture, shown with a fixed width.
    """
    title, image = html.escape(title), base64.b64encode(picture).decode()
    return (
        f'<!doctype html><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f'<h1>{title}</h1><img alt="{html.escape(alt)}" src="data:image/png;base64,{image}"><pre>{html.escape(text)}</pre>\n'
    )
