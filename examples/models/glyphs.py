"""Images of glyphs_cnn: letters and digits of 28x28 pixels, rendered from the fonts that come with matplotlib, distorted and noisy."""
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

# Lower-case letters that look like their capital once the size is lost (c, o, s, ...) are left out.
CLASSES = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
TRAINING_FONTS = """DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSansMono DejaVuSansMono-Oblique
    DejaVuSansMono-BoldOblique DejaVuSerif DejaVuSerif-Bold DejaVuSerif-BoldItalic STIXGeneral STIXGeneralItalic
    STIXGeneralBolIta cmr10 cmb10 cmtt10""".split()
EVALUATION_FONTS = "DejaVuSans-BoldOblique DejaVuSansMono-Bold DejaVuSerif-Italic STIXGeneralBol cmss10 cmti10".split()
SIDE = 28
BIG = 96  # glyphs are drawn large, then transformed once into the small image


def draw_glyph(font, character):
    """The character, white on black, in the middle of a BIG x BIG image, of the height that the font gives it."""
    left, top, right, bottom = font.getbbox(character)
    image = Image.new("L", (BIG, BIG))
    at = ((BIG - right - left) / 2, (BIG - bottom - top) / 2)
    ImageDraw.Draw(image).text(at, character, fill=255, font=font)
    return image


def distort(glyph, random):
    """A SIDE x SIDE image of the glyph, shifted, scaled, rotated, sheared and blurred, as floats in 0..1."""
    angle, shear = np.radians(random.uniform(-18, 18)), random.uniform(-0.2, 0.2)
    zoom = BIG / SIDE / random.uniform(1.0, 1.7) * random.uniform(0.9, 1.1, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    to_source = turn @ np.array([[1, shear], [0, 1]]) @ np.diag(zoom)  # from small pixels to large ones
    offset = BIG / 2 - to_source @ (SIDE / 2 + random.uniform(-2.5, 2.5, 2))
    coefficients = (*to_source[0], offset[0], *to_source[1], offset[1])
    glyph = glyph.filter(ImageFilter.GaussianBlur(random.uniform(1.0, 3.0)))
    small = glyph.transform((SIDE, SIDE), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float32) / 255


def degrade(images, random):
    """Lower contrast, an uneven background, pixel noise and a dark bar, rounded to 16 grey levels (uint8, 0..255)."""
    n = len(images)
    each = lambda low, high: random.uniform(low, high, (n, 1, 1)).astype(np.float32)
    ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
    background = each(0, 0.2) + each(-0.15, 0.15) * ramp[None, :, None] + each(-0.15, 0.15) * ramp[None, None, :]
    images = background + each(0.5, 1.0) * images
    rows = np.arange(SIDE)[None, :, None]
    bar = random.integers(0, SIDE, (n, 1, 1))
    images = np.where((rows >= bar) & (rows < bar + random.integers(0, 3, (n, 1, 1))), background, images)
    images = images + each(0.02, 0.2) * random.standard_normal(images.shape, dtype=np.float32)
    return (np.clip(images, 0, 1) * 15).round().astype(np.uint8) * 17  # 16 levels keep eval.npz small


def render(font_names, per_class, random):
    """`per_class` clean distorted images of each class, spread over the fonts, with labels, shuffled."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(str(folder / f"{name}.ttf"), BIG // 2) for name in font_names]
    images, labels = [], []
    for label, character in enumerate(CLASSES):
        glyphs = [draw_glyph(font, character) for font in fonts]
        for i in range(per_class):
            images.append(distort(glyphs[i % len(glyphs)], random))
            labels.append(label)
    order = random.permutation(len(labels))
    return np.stack(images)[order], np.array(labels)[order]
