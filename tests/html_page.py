"""A page as a browser would parse it, for the tests of pages."""

import base64
import html.parser
import io
import re

from PIL import Image

# A name that is no tag, no attribute and no address.
HOSTILE = '<script src="https://evil.example/x.js">\'&"猫.png'
NO_UNICODE = b'caf\xe9.png'.decode('utf-8', 'surrogateescape')
_VOID = {'meta', 'img', 'input', 'br', 'link', 'hr'}
_DATA_URI = re.compile(r'data:image/(png|jpeg);base64,(.*)')


class Page(html.parser.HTMLParser):
  """Tags, attributes and text; fails on tags that do not match."""

  def __init__(self, text: str):
    super().__init__()
    self.tags, self.texts, self._open = [], [], []
    self.feed(text)
    self.close()
    assert not self._open, self._open

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in _VOID:
      self._open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self._open and self._open.pop() == tag, (tag, self.getpos())

  def handle_data(self, data):
    if not self._open or self._open[-1] != 'style':
      self.texts.append(data)

  @property
  def text(self) -> str:
    return ' '.join(' '.join(self.texts).split())

  def of(self, tag: str, **wanted) -> list[dict]:
    return [
      attributes
      for t, attributes in self.tags
      if t == tag and all(attributes.get(k) == v for k, v in wanted.items())
    ]

  def panel(self, label: str) -> list[Image.Image]:
    """The layers of a panel as a browser paints them."""
    images, found, layers = {}, [], None
    for tag, attributes in self.tags:
      if tag == 'svg':
        layers = []
        if attributes.get('aria-label') == label:
          found.append(layers)
      elif tag == 'image':
        layers.append(decode(attributes['href']))
        images[attributes.get('id')] = layers[-1]
      elif tag == 'use':
        layers.append(images[attributes['href'].removeprefix('#')])
    (layers,) = found
    return layers


def decode(uri: str) -> Image.Image:
  kind, encoded = _DATA_URI.fullmatch(uri).groups()
  image = Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)))
  assert image.format == kind.upper()
  image.load()
  return image


def read(path) -> Page:
  """Returns a page, which must be whole and the only file of its folder."""
  assert [p.name for p in path.parent.iterdir()] == [path.name]
  text = path.read_text(encoding='utf-8')
  page = Page(text)
  assert_self_contained(page, text)
  assert_pictures_are_named(page)
  return page


def assert_self_contained(page: Page, text: str) -> None:
  """Nothing runs, and nothing is loaded from elsewhere."""
  assert {tag for tag, _ in page.tags}.isdisjoint(
    {'script', 'link', 'iframe', 'object', 'embed', 'form'}
  )
  for _, attributes in page.tags:
    assert not any(key.startswith('on') for key in attributes)
    for key in ('href', 'src', 'srcset', 'xlink:href'):
      assert re.match('#|data:image/', attributes.get(key, '#'))
  (policy,) = page.of('meta', **{'http-equiv': 'Content-Security-Policy'})
  assert policy['content'].startswith("default-src 'none'")
  style = re.search('(?s)<style>.*</style>', text)
  assert 'url(' not in style[0] and '@import' not in style[0]


def assert_pictures_are_named(page: Page) -> None:
  """For those who cannot see them."""
  for svg in page.of('svg'):
    assert svg.get('aria-hidden') == 'true' or (
      svg['role'] == 'img' and svg['aria-label']
    )
  assert not page.of('img')
  assert page.of('html', lang='en')
