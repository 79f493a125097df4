"""Pictures of both reports for the documents, of the demo: run by hand, and look at them.

python tests/pictures.py docs/images             # makes the demo first
python tests/pictures.py docs/images rin-demo    # takes one that is there
"""

import base64
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
from playwright.sync_api import Page
from rich.console import Console
from rich.text import Text

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.browser import chromium, opened

COLUMNS = 110
QUERY, TOKEN = "false-fact", " Toronto"
# Rich's own, without the font that it would fetch from elsewhere.
SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def rin(folder: Path, *arguments: str) -> str:
    """Run the program as in a terminal with colours; return its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "rapidin_cli", *arguments],
        cwd=folder, check=True, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "FORCE_COLOR": "1", "COLORTERM": "truecolor", "COLUMNS": str(COLUMNS)},
    )  # fmt: skip
    return done.stdout


def terminal(demo: Path, out: Path) -> None:
    command = ["report", "--query", QUERY, "--top", "4"]
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for line in rin(demo, *command).splitlines():
        console.print(Text.from_ansi(line.rstrip()), soft_wrap=True)
    drawn = console.export_svg(title=f"rin {' '.join(command)}", code_format=SVG, unique_id="rin")
    out.write_text("".join(f"{line.rstrip()}\n" for line in drawn.splitlines()), encoding="utf-8")


def page(demo: Path, out: Path) -> None:
    """Both themes, with a token chosen and the second raised example open."""
    [query] = [q for q in json.loads(rin(demo, "report", "--json"))["queries"] if q["id"] == QUERY]
    said = [token["text"] for token in query["tokens"] if token["explained"]]
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        path = Path(folder) / "report.html"
        rin(demo, "report", "--html", str(path))
        for theme in ("light", "dark"):
            window = {"width": 1200, "height": 1500}
            with opened(browser, path, f"#q={QUERY}", viewport=window, color_scheme=theme) as seen:
                seen.page.locator(f"[data-token='{said.index(TOKEN)}']").click()
                seen.page.locator("#raised .card-head").nth(1).click()
                seen.page.mouse.move(0, 0)
                seen.page.evaluate("scrollTo(0, 0)")
                picture = seen.page.screenshot()
                seen.assert_quiet()
                # A page of its own: the report's policy lets no image in.
                (out / f"report-{theme}.png").write_bytes(small(browser.new_page(), picture))


def small(page: Page, picture: bytes) -> bytes:
    """A PNG with a palette of the 256 most frequent colours: a third of what Chromium writes."""
    code = """async (data) => {
      const image = new Image();
      image.src = "data:image/png;base64," + data;
      await image.decode();
      const { width, height } = image;
      const canvas = Object.assign(document.createElement("canvas"), { width, height });
      const context = canvas.getContext("2d");
      context.drawImage(image, 0, 0);
      const bytes = context.getImageData(0, 0, width, height).data;
      let text = "";
      for (let i = 0; i < bytes.length; i += 4) {
        text += String.fromCharCode(bytes[i], bytes[i + 1], bytes[i + 2]);
      }
      return [width, height, btoa(text)];
    }"""
    width, height, pixels = page.evaluate(code, base64.b64encode(picture).decode())
    rgb = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(-1, 3).astype(np.int32)
    colours, places, counts = np.unique(rgb, axis=0, return_inverse=True, return_counts=True)
    palette = colours[np.argsort(-counts, kind="stable")[:256]]
    nearest = ((colours[:, None] - palette[None]) ** 2).sum(2).argmin(1).astype(np.uint8)
    rows = nearest[places.reshape(height, width)]
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = (b"IHDR", head), (b"PLTE", palette.astype(np.uint8).tobytes())
    parts += (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b"")
    chunks = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        demo = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(folder) / "rin-demo"
        if not demo.exists():
            rin(Path.cwd(), "demo", str(demo))
        terminal(demo, out / "terminal.svg")
        page(demo, out)


if __name__ == "__main__":
    main()
