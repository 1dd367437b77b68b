//! Coded images to pixels: BMP, JPEG, JPEG 2000, PNG, PNM, TIFF, WebP.

use crate::Fault;
use crate::fault::fault;
use crate::jpeg;
use crate::tensor::{Tensor, dtype, filled};
use crate::value::{Inputs, Value, tensor};
use image::ImageFormat;

/// What the samples of a pixel are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pixels {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// Luminance.
    Gray,
}

/// Pixels of three samples, row by row.
struct Rgb {
    width: usize,
    height: usize,
    samples: Vec<u8>,
}

/// The most pixels of an image.
const PIXELS: usize = 1 << 27;

/// Decodes operand 0, the bytes of a file, to height x width x samples.
pub fn decode(pixels: Pixels, inputs: Inputs) -> Result<Value, Fault> {
    let t = tensor(inputs, 0)?;
    if t.dtype() != dtype::U8 || t.dims().len() != 1 {
        return Err(fault!("operand 0 is {t}, the bytes of an image are needed"));
    }
    let Rgb { width, height, samples } = read(t.bytes())?;
    let rgb = samples.chunks_exact(3);
    let (samples, depth): (Vec<u8>, usize) = match pixels {
        Pixels::Rgb => (samples, 3),
        Pixels::Bgr => (rgb.flat_map(|p| [p[2], p[1], p[0]]).collect(), 3),
        // ITU-R 601 in 16-bit fixed point, as Pillow has it, which made ONNX's stored images.
        Pixels::Gray => {
            let gray = |p: &[u8]| 19595 * u32::from(p[0]) + 38470 * u32::from(p[1]) + 7471 * u32::from(p[2]);
            (rgb.map(|p| ((gray(p) + 0x8000) >> 16) as u8).collect(), 1)
        }
    };
    Ok(Tensor::from_bytes(dtype::U8, vec![height, width, depth], samples)?.into())
}

fn read(bytes: &[u8]) -> Result<Rgb, Fault> {
    if bytes.starts_with(&[0xff, 0xd8]) {
        let jpeg::Image { width, height, rgb } = jpeg::decode(bytes)?;
        return Ok(Rgb { width, height, samples: rgb });
    }
    if bytes.starts_with(b"\0\0\0\x0cjP  ") || bytes.starts_with(&[0xff, 0x4f, 0xff, 0x51]) {
        return jpeg2000(bytes);
    }
    let format = match image::guess_format(bytes) {
        Ok(f @ (ImageFormat::Bmp | ImageFormat::Png | ImageFormat::Pnm | ImageFormat::Tiff | ImageFormat::WebP)) => f,
        _ => return Err(fault!("the bytes are no image of a known kind: BMP, JPEG, JPEG 2000, PNG, PNM, TIFF or WebP")),
    };
    // Its limits keep a small file from taking much memory.
    let reader = image::ImageReader::with_format(std::io::Cursor::new(bytes), format);
    let made = reader.decode().map_err(|e| fault!("the image cannot be decoded: {e}"))?.into_rgb8();
    Ok(Rgb { width: made.width() as usize, height: made.height() as usize, samples: made.into_raw() })
}

fn jpeg2000(bytes: &[u8]) -> Result<Rgb, Fault> {
    let broken = |e: hayro_jpeg2000::error::DecodeError| fault!("the JPEG 2000 image cannot be decoded: {e}");
    let image = hayro_jpeg2000::Image::new(bytes, &Default::default()).map_err(broken)?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    if width.checked_mul(height).is_none_or(|n| n > PIXELS) {
        return Err(fault!("a JPEG 2000 image of {width} x {height} pixels; at most {PIXELS} of them are supported"));
    }
    let mut context = Default::default();
    let decoded = image.decode(&mut context).map_err(broken)?;
    let planes = decoded.components().len();
    let colours = usize::from(image.color_space().num_channels());
    let data = decoded.data_u8();
    if !matches!(colours, 1 | 3) || planes < colours || data.len() != width * height * planes {
        return Err(fault!("a JPEG 2000 image of {colours} colours; 1 or 3 are supported"));
    }
    let mut samples = filled(width * height * 3, 0)?;
    for (pixel, from) in samples.chunks_exact_mut(3).zip(data.chunks_exact(planes)) {
        (0..3).for_each(|k| pixel[k] = from[k.min(colours - 1)]);
    }
    Ok(Rgb { width, height, samples })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(bytes: &[u8], pixels: Pixels) -> Result<Tensor, String> {
        let file: Value = Tensor::from_bytes(dtype::U8, vec![bytes.len()], bytes.to_vec()).unwrap().into();
        decode(pixels, &[Some(&file)]).map(|v| v.as_tensor().unwrap().clone()).map_err(|f| f.0)
    }

    const PPM: &[u8] = b"P6 2 1 255\n\x0a\x14\x1e\xff\x00\x00";

    #[test]
    fn pixels_come_in_the_order_asked_for() {
        assert_eq!(run(PPM, Pixels::Rgb).unwrap().bytes(), [10, 20, 30, 255, 0, 0]);
        assert_eq!(run(PPM, Pixels::Bgr).unwrap().bytes(), [30, 20, 10, 0, 0, 255]);
        let gray = run(PPM, Pixels::Gray).unwrap();
        assert_eq!((gray.dims(), gray.bytes()), (&[1, 2, 1][..], &[18, 76][..]));
    }

    #[test]
    fn broken_files_are_errors() {
        assert!(run(b"GIF89a", Pixels::Rgb).unwrap_err().starts_with("the bytes are no image of a known kind"));
        assert!(run(&PPM[..14], Pixels::Rgb).unwrap_err().starts_with("the image cannot be decoded"));
        assert_eq!(run(&[0xff, 0xd8, 0xff], Pixels::Rgb).unwrap_err(), "the JPEG data ends early");
        assert!(run(b"\0\0\0\x0cjP  \r\n\x87\n", Pixels::Rgb).is_err());
    }

    /// Files that Pillow has written, and what it (libjpeg-turbo) decodes: subsampling, progressive scans, restarts, grey, RGB.
    fn samples() -> Vec<(&'static str, &'static [u8], &'static [u8])> {
        macro_rules! samples { ($($name:literal)*) => { vec![$((
            $name,
            include_bytes!(concat!("../tests/jpeg/", $name, ".jpg")),
            include_bytes!(concat!("../tests/jpeg/", $name, ".ppm")),
        )),*] } }
        samples! { "420" "422" "444" "440" "progressive" "restart" "grey" "rgb" "tiny" }
    }

    #[test]
    fn jpeg_equals_libjpeg() {
        for (name, jpg, ppm) in samples() {
            let (got, want) = (run(jpg, Pixels::Rgb).unwrap(), run(ppm, Pixels::Rgb).unwrap());
            assert_eq!(got, want, "{name}");
        }
    }

    proptest! {
        /// A damaged file is an image or an error.
        #[test]
        fn damaged_jpegs_do_no_harm(which in 0..9usize, at in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 1..4), cut in any::<bool>()) {
            let mut file = samples()[which].1.to_vec();
            let at = at.index(file.len());
            for (place, b) in file[at..].iter_mut().zip(bytes) {
                *place = b;
            }
            if cut {
                file.truncate(at);
            }
            let _ = run(&file, Pixels::Gray);
        }
    }
}
