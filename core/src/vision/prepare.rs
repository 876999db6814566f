//! The only preprocessing: a part of a frame becomes the input of a network.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use super::VisionError;
use super::manifest::{Colour, Input, Kernel, Resize};
use crate::frame::Frame;
use crate::units::Rect;

/// Cuts, resizes and normalises pictures for one network; its buffers are reused.
pub(super) struct Preparer {
    width: usize,
    height: usize,
    options: ResizeOptions,
    /// The source channel of each of the input's channels.
    order: [usize; 3],
    /// `(value - mean) / std` for each 8-bit value of each of the input's channels.
    table: Box<[[f32; 256]; 3]>,
    resizer: Resizer,
    resized: Vec<u8>,
}

/// A rectangle of whole pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PixelBox {
    x: u32,
    y: u32,
    width: u32,
    height: u32,
}

/// Where a part of a frame came to lie in a network's input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Placement {
    /// The part's top left corner in the frame, pixels.
    origin: (f64, f64),
    /// Pixels of the frame per pixel of the input.
    scale: (f64, f64),
    /// Size of the frame, pixels.
    frame: (f64, f64),
}

impl Placement {
    /// A box `[x0, y0, x1, y1]` in pixels of the input as a part of the frame; `None` if nothing
    /// of it lies in the frame or a coordinate is not finite.
    pub(super) fn to_frame(self, bounds: [f32; 4]) -> Option<Rect> {
        let [x0, y0, x1, y1] = bounds.map(f64::from);
        let x = |v: f64| ((self.origin.0 + v * self.scale.0) / self.frame.0) as f32;
        let y = |v: f64| ((self.origin.1 + v * self.scale.1) / self.frame.1) as f32;
        Rect::clipped(x(x0), y(y0), x(x1), y(y1))
    }
}

impl Preparer {
    /// For a network with `input`, but `width` by `height` pixels.
    pub(super) fn new(input: &Input, width: usize, height: usize) -> Self {
        let filter = match input.kernel {
            Kernel::Bilinear => FilterType::Bilinear,
            Kernel::Bicubic => FilterType::CatmullRom,
        };
        let table = std::array::from_fn(|c| {
            std::array::from_fn(|v| (v as f32 - input.mean[c]) / input.std[c])
        });
        Self {
            width,
            height,
            options: ResizeOptions::new()
                .resize_alg(ResizeAlg::Convolution(filter))
                .use_alpha(false),
            order: match input.colour {
                Colour::Rgb => [0, 1, 2],
                Colour::Bgr => [2, 1, 0],
            },
            table: Box::new(table),
            resizer: Resizer::new(),
            resized: Vec::new(),
        }
    }

    /// Fits `region` of `frame` into `out` (channel, row, column) in the manner of `resize`.
    ///
    /// # Errors
    /// Only if the resizer refuses the sizes, which a [`Frame`] and a manifest rule out.
    pub(super) fn prepare(
        &mut self,
        frame: &Frame,
        region: Rect,
        resize: Resize,
        out: &mut [f32],
    ) -> Result<Placement, VisionError> {
        let mut part = PixelBox::around(region, frame);
        let (w, h) = (f64::from(part.width), f64::from(part.height));
        let (net_w, net_h) = (self.width as f64, self.height as f64);
        let (mut new_w, mut new_h, mut fill) = (self.width, self.height, 0);
        let mut scale = (w / net_w, h / net_h);
        match resize {
            Resize::Stretch => {}
            Resize::Crop { fraction } => {
                part = part.middle_square(fraction);
                scale = (f64::from(part.width) / net_w, f64::from(part.height) / net_h);
            }
            Resize::Letterbox { fill: value } => {
                let ratio = (net_w / w).min(net_h / h);
                new_w = ((w * ratio) as usize).clamp(1, self.width);
                new_h = ((h * ratio) as usize).clamp(1, self.height);
                scale = (1.0 / ratio, 1.0 / ratio);
                fill = value;
            }
        }
        self.resize(frame, part, new_w, new_h)?;
        self.normalise(new_w, new_h, fill, out);
        Ok(Placement {
            origin: (f64::from(part.x), f64::from(part.y)),
            scale,
            frame: (f64::from(frame.width()), f64::from(frame.height())),
        })
    }

    fn resize(
        &mut self,
        frame: &Frame,
        part: PixelBox,
        width: usize,
        height: usize,
    ) -> Result<(), VisionError> {
        self.resized.resize(width * height * 3, 0);
        let refuse = |e: &dyn std::error::Error| VisionError::Resize(e.to_string());
        // Typed, so that no other kind of pixel becomes part of the program.
        let source =
            TypedImageRef::<U8x3>::from_buffer(frame.width(), frame.height(), frame.pixels())
                .map_err(|e| refuse(&e))?;
        let mut target =
            TypedImage::<U8x3>::from_buffer(width as u32, height as u32, &mut self.resized)
                .map_err(|e| refuse(&e))?;
        let options = self.options.crop(
            f64::from(part.x),
            f64::from(part.y),
            f64::from(part.width),
            f64::from(part.height),
        );
        self.resizer.resize_typed(&source, &mut target, &options).map_err(|e| refuse(&e))
    }

    /// Writes the resized picture into the top left corner of `out` and `fill` around it.
    fn normalise(&self, width: usize, height: usize, fill: u8, out: &mut [f32]) {
        let [first, second, third] = &*self.table;
        let [a, b, c] = self.order;
        let area = self.width * self.height;
        let (plane0, rest) = out.split_at_mut(area);
        let (plane1, plane2) = rest.split_at_mut(area);
        let rows = plane0
            .chunks_exact_mut(self.width)
            .zip(plane1.chunks_exact_mut(self.width))
            .zip(plane2.chunks_exact_mut(self.width));
        let mut pictures = self.resized.chunks_exact(width * 3).take(height);
        for ((row0, row1), row2) in rows {
            let mut x = 0;
            if let Some(pixels) = pictures.next() {
                let (pixels, _) = pixels.as_chunks::<3>();
                let values = row0.iter_mut().zip(row1.iter_mut()).zip(row2.iter_mut());
                for (((v0, v1), v2), pixel) in values.zip(pixels) {
                    *v0 = first[usize::from(pixel[a])];
                    *v1 = second[usize::from(pixel[b])];
                    *v2 = third[usize::from(pixel[c])];
                }
                x = width;
            }
            row0[x..].fill(first[usize::from(fill)]);
            row1[x..].fill(second[usize::from(fill)]);
            row2[x..].fill(third[usize::from(fill)]);
        }
    }
}

impl PixelBox {
    /// The pixels that `region` touches, at least one.
    fn around(region: Rect, frame: &Frame) -> Self {
        let span = |from: f32, to: f32, size: u32| {
            // A hair of tolerance, so that 96/128 times 128 is 96 and not 97 pixels.
            let size_f = f64::from(size);
            let start = ((f64::from(from) * size_f + 1e-3).floor() as u32).min(size - 1);
            let end = ((f64::from(to) * size_f - 1e-3).ceil() as u32).clamp(start + 1, size);
            (start, end - start)
        };
        let (x, width) = span(region.x0(), region.x1(), frame.width());
        let (y, height) = span(region.y0(), region.y1(), frame.height());
        Self { x, y, width, height }
    }

    /// The square in the middle whose side is `fraction` of the shorter side.
    fn middle_square(self, fraction: f32) -> Self {
        let short = self.width.min(self.height);
        let side = (f64::from(fraction) * f64::from(short)).round_ties_even() as u32;
        let side = side.clamp(1, short);
        Self {
            x: self.x + (self.width - side) / 2,
            y: self.y + (self.height - side) / 2,
            width: side,
            height: side,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Uptime;
    use crate::vision::manifest::Layout;

    fn input(colour: Colour) -> Input {
        Input {
            name: "images".into(),
            shape: [1, 3, 4, 8],
            layout: Layout::Nchw,
            colour,
            mean: [0.0, 100.0, 0.0],
            std: [1.0, 2.0, 1.0],
            resize: Resize::Stretch,
            kernel: Kernel::Bilinear,
        }
    }

    fn plain(rgb: [u8; 3], width: u32, height: u32) -> Frame {
        Frame::from_rgb(rgb.repeat((width * height) as usize), width, height, Uptime::ZERO).unwrap()
    }

    #[test]
    fn channels_are_ordered_and_normalised() {
        let frame = plain([10, 20, 30], 5, 3);
        let mut out = vec![0.0; 96];
        Preparer::new(&input(Colour::Rgb), 8, 4)
            .prepare(&frame, Rect::WHOLE, Resize::Stretch, &mut out)
            .unwrap();
        assert_eq!((out[0], out[32], out[95]), (10.0, -40.0, 30.0));
        Preparer::new(&input(Colour::Bgr), 8, 4)
            .prepare(&frame, Rect::WHOLE, Resize::Stretch, &mut out)
            .unwrap();
        assert_eq!((out[0], out[32], out[95]), (30.0, -40.0, 10.0));
    }

    #[test]
    fn a_letterbox_fills_the_right_or_the_bottom_and_maps_back() {
        let resize = Resize::Letterbox { fill: 114 };
        let mut preparer = Preparer::new(&input(Colour::Rgb), 8, 4);
        let mut out = vec![0.0; 96];
        // Square: 4 by 4 pixels at the left.
        let placed =
            preparer.prepare(&plain([7; 3], 100, 100), Rect::WHOLE, resize, &mut out).unwrap();
        assert_eq!(&out[..8], [7.0, 7.0, 7.0, 7.0, 114.0, 114.0, 114.0, 114.0]);
        assert_eq!(placed.to_frame([0.0, 0.0, 4.0, 4.0]), Some(Rect::WHOLE));
        assert_eq!(placed.to_frame([5.0, 0.0, 8.0, 4.0]), None, "the filling is not the frame");
        // Flat: 8 by 1 pixels at the top.
        let placed =
            preparer.prepare(&plain([7; 3], 160, 20), Rect::WHOLE, resize, &mut out).unwrap();
        assert_eq!((out[7], out[8]), (7.0, 114.0));
        let half = placed.to_frame([4.0, 0.0, 8.0, 1.0]).unwrap();
        assert_eq!(<[f32; 4]>::from(half), [0.5, 0.0, 1.0, 1.0]);
    }

    #[test]
    fn boxes_in_a_region_come_back_as_parts_of_the_frame() {
        let region = Rect::try_from([0.5, 0.25, 1.0, 0.75]).unwrap();
        let mut out = vec![0.0; 96];
        let placed = Preparer::new(&input(Colour::Rgb), 8, 4)
            .prepare(&plain([0; 3], 200, 100), region, Resize::Stretch, &mut out)
            .unwrap();
        assert_eq!(placed.to_frame([0.0, 0.0, 8.0, 4.0]), Some(region));
        assert_eq!(placed.to_frame([f32::NAN, 0.0, 8.0, 4.0]), None);
    }

    #[test]
    fn the_middle_square_rounds_halves_to_even() {
        let whole = PixelBox { x: 0, y: 0, width: 500, height: 374 };
        let square = whole.middle_square(0.875);
        assert_eq!(square, PixelBox { x: 86, y: 23, width: 327, height: 327 });
        let tiny = PixelBox { x: 3, y: 4, width: 1, height: 1 };
        assert_eq!(tiny.middle_square(0.2), tiny);
        let even = PixelBox { x: 0, y: 0, width: 12, height: 12 };
        assert_eq!(even.middle_square(0.875).width, 10, "10.5 rounds to 10");
    }

    #[test]
    fn one_pixel_and_slivers_are_pictures_too() {
        let mut out = vec![0.0; 96];
        for (w, h) in [(1, 1), (1, 900), (900, 1)] {
            let frame = plain([9, 9, 9], w, h);
            let mut preparer = Preparer::new(&input(Colour::Rgb), 8, 4);
            for resize in
                [Resize::Stretch, Resize::Crop { fraction: 0.875 }, Resize::Letterbox { fill: 9 }]
            {
                preparer.prepare(&frame, Rect::WHOLE, resize, &mut out).unwrap();
                assert!(out[..32].iter().all(|v| *v == 9.0), "{w}x{h} {resize:?}");
            }
        }
    }
}
