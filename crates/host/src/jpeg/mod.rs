//! JPEG: baseline and progressive images of 8 bits, to the very samples that libjpeg and libjpeg-turbo give in their default mode
//! (the accurate integer IDCT and "fancy" upsampling, `pixels.rs`). ONNX's stored images were decoded by these, and other decoders differ
//! from them by up to 3 steps, which is why this one is our own. After ITU-T T.81.

mod pixels;
mod scan;

use crate::Fault;
use crate::fault::fault;
use scan::Huffman;

/// The most pixels of an image.
const PIXELS: usize = 1 << 27;

/// An image: RGB, row by row.
pub struct Image {
    pub width: usize,
    pub height: usize,
    pub rgb: Vec<u8>,
}

/// A component of the frame.
pub(crate) struct Component {
    id: u8,
    /// Blocks of an MCU along each axis.
    h: usize,
    v: usize,
    /// Which quantisation table, and its values when the first scan began.
    quant: usize,
    table: Option<[u16; 64]>,
    /// Blocks that hold samples of the image.
    blocks_wide: usize,
    blocks_high: usize,
    /// Blocks in a row of `coefficients`, which has whole MCUs.
    stride: usize,
    /// Samples of the image.
    width: usize,
    height: usize,
    /// 64 numbers a block, in natural order.
    coefficients: Vec<i16>,
}

pub(crate) struct Frame {
    progressive: bool,
    width: usize,
    height: usize,
    components: Vec<Component>,
    mcus_wide: usize,
    mcus_high: usize,
    h_max: usize,
    v_max: usize,
}

/// What the markers have said so far.
struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    quant: [Option<[u16; 64]>; 4],
    dc: [Option<Huffman>; 4],
    ac: [Option<Huffman>; 4],
    restart: usize,
    frame: Option<Frame>,
    jfif: bool,
    adobe: Option<u8>,
}

/// From zigzag order to natural order.
pub(crate) const ZIGZAG: [usize; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28, 35, 42,
    49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

fn early() -> Fault {
    fault!("the JPEG data ends early")
}

/// Decodes an image.
pub fn decode(bytes: &[u8]) -> Result<Image, Fault> {
    let mut decoder = Decoder {
        bytes,
        at: 2,
        quant: [None; 4],
        dc: [const { None }; 4],
        ac: [const { None }; 4],
        restart: 0,
        frame: None,
        jfif: false,
        adobe: None,
    };
    while decoder.segment()? {}
    let ycc = decoder.is_ycc();
    let frame = decoder.frame.ok_or_else(|| fault!("the JPEG image has no frame"))?;
    pixels::assemble(&frame, ycc)
}

impl<'a> Decoder<'a> {
    fn byte(&mut self) -> Result<u8, Fault> {
        let b = *self.bytes.get(self.at).ok_or_else(early)?;
        self.at += 1;
        Ok(b)
    }

    /// The next marker, over fill bytes and what is left of a scan.
    fn marker(&mut self) -> Result<u8, Fault> {
        loop {
            while self.byte()? != 0xff {}
            let mut m = 0xff;
            while m == 0xff {
                m = self.byte()?;
            }
            // 0 is a stuffed byte, the restart markers belong to a scan.
            if m != 0 && !(0xd0..=0xd7).contains(&m) {
                return Ok(m);
            }
        }
    }

    /// Reads a segment; false at the end of the image.
    fn segment(&mut self) -> Result<bool, Fault> {
        let marker = self.marker()?;
        if marker == 0xd9 {
            return Ok(false);
        }
        if matches!(marker, 0xd8 | 0x01) {
            return Ok(true);
        }
        let length = usize::from(self.byte()?) << 8 | usize::from(self.byte()?);
        let end = length.checked_sub(2).and_then(|n| self.at.checked_add(n)).filter(|&e| e <= self.bytes.len());
        let body = &self.bytes[self.at..end.ok_or_else(early)?];
        self.at += body.len();
        match marker {
            0xc0..=0xc2 => self.start_frame(marker == 0xc2, body)?,
            0xc4 => self.huffman_tables(body)?,
            0xc3 | 0xc5..=0xcf => {
                return Err(fault!(
                    "JPEG images of kind SOF{} are not supported: baseline and progressive ones are",
                    marker - 0xc0
                ));
            }
            0xdb => self.quant_tables(body)?,
            0xdd => self.restart = body.get(..2).map(|b| usize::from(b[0]) << 8 | usize::from(b[1])).ok_or_else(early)?,
            0xda => self.scan(body)?,
            0xe0 => self.jfif |= body.starts_with(b"JFIF\0"),
            0xee if body.starts_with(b"Adobe") => self.adobe = body.get(11).copied(),
            _ => {}
        }
        Ok(true)
    }

    fn quant_tables(&mut self, mut body: &[u8]) -> Result<(), Fault> {
        while let Some((&head, rest)) = body.split_first() {
            let wide = usize::from(head >> 4 != 0);
            let size = 64 << wide;
            let (values, rest) = rest.split_at_checked(size).ok_or_else(early)?;
            let mut table = [0u16; 64];
            for (k, &place) in ZIGZAG.iter().enumerate() {
                table[place] = match wide {
                    0 => values[k].into(),
                    _ => u16::from(values[2 * k]) << 8 | u16::from(values[2 * k + 1]),
                };
            }
            self.quant[usize::from(head & 3)] = Some(table);
            body = rest;
        }
        Ok(())
    }

    fn huffman_tables(&mut self, mut body: &[u8]) -> Result<(), Fault> {
        while let Some((&head, rest)) = body.split_first() {
            let (counts, rest) = rest.split_at_checked(16).ok_or_else(early)?;
            let total = counts.iter().map(|&c| usize::from(c)).sum();
            let (values, rest) = rest.split_at_checked(total).ok_or_else(early)?;
            let tables = if head >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            tables[usize::from(head & 3)] = Some(Huffman::new(counts, values)?);
            body = rest;
        }
        Ok(())
    }

    fn start_frame(&mut self, progressive: bool, body: &[u8]) -> Result<(), Fault> {
        if self.frame.is_some() {
            return Err(fault!("the JPEG image has two frames"));
        }
        let [precision, h1, h0, w1, w0, count, rest @ ..] = body else { return Err(early()) };
        let (height, width) = (usize::from(*h1) << 8 | usize::from(*h0), usize::from(*w1) << 8 | usize::from(*w0));
        if *precision != 8 || !matches!(count, 1 | 3) {
            return Err(fault!("a JPEG image of {count} components of {precision} bits; 1 or 3 of 8 bits are supported"));
        }
        if width == 0 || height == 0 || width * height > PIXELS {
            return Err(fault!("a JPEG image of {width} x {height} pixels; from 1 to {PIXELS} of them are supported"));
        }
        let mut frame = Frame { progressive, width, height, components: vec![], mcus_wide: 0, mcus_high: 0, h_max: 1, v_max: 1 };
        let specs: Vec<&[u8]> = rest.chunks_exact(3).take(usize::from(*count)).collect();
        if specs.len() != usize::from(*count) {
            return Err(early());
        }
        let sampling = |spec: &[u8]| (usize::from(spec[1] >> 4), usize::from(spec[1] & 15));
        for spec in &specs {
            let (h, v) = sampling(spec);
            if !(1..=4).contains(&h) || !(1..=4).contains(&v) {
                return Err(fault!("a JPEG component has {h} x {v} blocks; 1 to 4 are possible"));
            }
            (frame.h_max, frame.v_max) = (frame.h_max.max(h), frame.v_max.max(v));
        }
        // A single component has no MCUs of several blocks.
        if specs.len() == 1 {
            (frame.h_max, frame.v_max) = (1, 1);
        }
        frame.mcus_wide = width.div_ceil(8 * frame.h_max);
        frame.mcus_high = height.div_ceil(8 * frame.v_max);
        for spec in &specs {
            let (h, v) = if specs.len() == 1 { (1, 1) } else { sampling(spec) };
            let (width, height) = ((width * h).div_ceil(frame.h_max), (height * v).div_ceil(frame.v_max));
            let stride = frame.mcus_wide * h;
            frame.components.push(Component {
                id: spec[0],
                h,
                v,
                quant: usize::from(spec[2] & 3),
                table: None,
                blocks_wide: width.div_ceil(8),
                blocks_high: height.div_ceil(8),
                stride,
                width,
                height,
                coefficients: crate::tensor::filled(stride * frame.mcus_high * v * 64, 0)?,
            });
        }
        self.frame = Some(frame);
        Ok(())
    }

    fn scan(&mut self, head: &[u8]) -> Result<(), Fault> {
        let frame = self.frame.as_mut().ok_or_else(|| fault!("a JPEG scan comes before its frame"))?;
        let tables = scan::Tables { dc: &self.dc, ac: &self.ac, restart: self.restart };
        let (scan, members) = scan::Scan::read(head, frame)?;
        // A component's table is the one that there is when its first scan begins.
        for &(c, ..) in &members {
            let component = &mut frame.components[c];
            if component.table.is_none() {
                component.table = self.quant[component.quant];
            }
        }
        self.at += scan::run(&scan, &members, frame, &tables, &self.bytes[self.at..])?;
        Ok(())
    }

    /// Are three components luminance and colour differences? As libjpeg decides it.
    fn is_ycc(&self) -> bool {
        let ids: Vec<u8> = self.frame.iter().flat_map(|f| &f.components).map(|c| c.id).collect();
        match (self.jfif, self.adobe) {
            (true, _) => true,
            (false, Some(transform)) => transform != 0,
            (false, None) => ids != [b'R', b'G', b'B'],
        }
    }
}
